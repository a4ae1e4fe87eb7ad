Feature: Cancelling
  A cancel may come at any moment of a job's life. The first end wins, the answer is the true
  state, and nothing follows the end.

  Background:
    Given a service with 1 slot

  @ORCH-3026
  Scenario: A waiting job never runs
    Given the job "long" is running and takes its time
    And the job "story" is waiting
    When the client cancels "story"
    Then the answer says that "story" is CANCELLED
    And "story" ends with CANCELLED
    And "story" has said 0 words

  @ORCH-3026
  Scenario: A running job stops, and its slot is free for the next
    Given the job "long" is running and takes its time
    And the job "next" is waiting
    When the client cancels "long"
    Then the answer says that "long" is CANCELLED
    And "long" ends with CANCELLED
    And "long" has said 1 word
    When the running jobs are let go
    Then "next" finishes

  Scenario: A finished job stays finished
    Given the client sends the job "story"
    And "story" finishes
    When the client cancels "story"
    Then the answer says that "story" is FINISHED
    And "story" is FINISHED in the list of jobs

  Scenario: Cancelling twice is no error
    Given the job "long" is running and takes its time
    When the client cancels "long"
    And the client cancels "long"
    Then the answer says that "long" is CANCELLED
    And "long" ends with CANCELLED

  Scenario: A cancelled job gives its place in the queue to the next
    Given the job "long" is running and takes its time
    And the job "story" is waiting
    When the client cancels "story"
    And the client sends the job "next"
    Then "next" is accepted at position 1

  Scenario: There is no such job
    When the client cancels a job "no-such-job" that nobody gave
    Then the call is refused with NOT_FOUND
    And a retry is of no use
