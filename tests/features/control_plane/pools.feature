Feature: Taking a pool out of service
  An operator takes a pool out without dropping a stream, and loads its model anew or goes back to
  the former one. Whoever watches the pools is told.

  @OC-CTRL-2002
  Scenario: What runs goes on, what comes waits
    Given a service with 2 slots
    And the job "long" is running and takes its time
    When the operator drains the pool "gpu"
    And the client sends the job "later"
    And the running jobs are let go
    Then "long" finishes
    And "later" is QUEUED in the list of jobs
    And "later" waits because the pool "gpu" is "drained by an operator"
    When the operator ends the drain of the pool "gpu"
    Then "later" finishes

  @OC-CTRL-2002
  Scenario: When its time is up, what still runs goes on elsewhere
    Given a service with these pools
      | pool  | slots |
      | left  | 1     |
      | right | 1     |
    And the client sends the slow job "story" with
      | on failure | verified replay |
    And "story" has said its first word
    When the operator drains the pool of "story" at once
    And the running jobs are let go
    Then the events of "story" are started, words, resumed, words, outcome
    And "story" has said 16 words

  @OC-CTRL-2002
  Scenario: A drain outlives a restart
    Given a service with 1 slot
    When the operator drains the pool "gpu"
    And orchestratord is restarted
    And the client sends the job "later"
    Then the pool "gpu" is DRAINING
    And "later" is QUEUED in the list of jobs

  @OC-CTRL-2001
  Scenario: Who watches the pools is told of every change
    Given a service with 1 slot
    And somebody watches the pools
    When the operator drains the pool "gpu"
    Then the watcher is told that the pool "gpu" is DRAINING
    When the operator ends the drain of the pool "gpu"
    Then the watcher is told that the pool "gpu" is READY

  @OC-CTRL-2003
  Scenario: Loading the model anew
    Given a service with 1 slot
    When the operator reloads the pool "gpu"
    Then the reload is DONE
    When the client sends the job "story"
    Then "story" finishes

  @OC-CTRL-2003 @ORCH-3038
  Scenario: A model that cannot be loaded is taken back, and the former one serves
    Given a service with 1 slot
    When the operator reloads the pool "gpu" with the model "/no/such/model.gguf"
    Then the reload is ROLLED_BACK
    And the operator is told why
    When the client sends the job "story"
    Then "story" finishes

  Scenario: On the command line
    Given a service with 1 slot
    When somebody types "llorch drain gpu --deadline 5m"
    Then the command succeeds and shows "gpu drains: nothing runs there"
    When somebody types "llorch pools"
    Then the command succeeds and shows "gpu" and "DRAINING"
    When somebody types "llorch drain no-such-pool"
    Then the command fails with 2 and says "no-such-pool"
