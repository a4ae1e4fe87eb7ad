Feature: Seeing what happens
  Counts add up, one trace leads through a job, every call can be found in the logs by an id that
  its client chose, and what clients write stays out of all of it.

  @ORCH-3028
  Scenario: Counts add up
    Given a service with 1 slot
      """
      [queue]
      capacity = 1
      """
    And the job "long" is running and takes its time
    And the job "cancelled" is waiting
    When the client sends the job "refused"
    And the client cancels "cancelled"
    And the client sends the job "next"
    And the running jobs are let go
    And "long" finishes
    And "next" finishes
    Then the metrics count 3 accepted jobs: 2 finished, 1 cancelled, and 1 refused
    And no metric counts a job that is still alive

  @HME-030
  Scenario: A call is found by the id that its client gave it
    Given a service with 1 slot
    When the client sends the job "story" under the correlation id "my-call-17"
    Then the answer comes with the correlation id "my-call-17"
    And the log tells of the accepted job under "my-call-17"

  @HME-030
  Scenario: Who gives no id gets one
    Given a service with 1 slot
    When the client sends the job "story"
    Then the answer comes with a correlation id

  @ORCH-3302 @ORCH-3300
  Scenario: What clients write and engines say is in no log and no metric
    Given a service with 1 slot
    When the client sends the job "secret" with
      | prompt | the-prompt-canary says hello |
    And "secret" finishes
    Then nothing of "the-prompt-canary" is in any log
    And nothing of "the-prompt-canary" is in the metrics
    And nothing that "secret" has said is in any log

  Scenario: One trace leads from the client through the service to the engine
    Given all spans are collected
    And a service with 1 slot
    When a client that traces runs the job "story"
    Then one trace has the spans of the client, of orchestratord and of pool-managerd
    And it has the steps enqueue, admit, queue.wait, place, dispatch, decode
    And every span has its parent
