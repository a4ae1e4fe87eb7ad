Feature: When there is too much to do
  The queue is bounded. Who comes when it is full is told at once: which rule refused the job,
  whether trying again helps, and when. Each service chooses what happens to whom.

  @ORCH-3016 @ORCH-3017 @ORCH-2007
  Scenario: A full queue refuses and says when to come back
    Given a service with 1 slot
      """
      [queue]
      capacity = 1
      """
    And the job "long" is running and takes its time
    And the job "next" is waiting
    When the client sends the job "late"
    Then "late" is refused with ADMISSION_REJECT because of "reject"
    And the refusal says to come back after a while
    And "late" was never queued
    When the running jobs are let go
    And "next" finishes
    And the client sends "late" again
    Then "late" is accepted
    And "late" finishes

  Scenario: A client that is told to come back may leave that to its library
    Given a service with 1 slot
      """
      [queue]
      capacity = 1
      retry_after_max_ms = 100
      """
    And the job "long" is running and takes its time
    And the job "next" is waiting
    When a patient client sends the job "late"
    And the running jobs are let go
    Then the patient client's job finishes

  @ORCH-3005 @LO-101 @LO-102
  Scenario Outline: Who gives way when the queue is full: <policy>, <newcomer> arrives
    Given a service with 1 slot
      """
      [queue]
      capacity = 3
      policy = "<policy>"
      """
    And the job "long" is running and takes its time
    And the <first> job "first" waits
    And the <second> job "second" waits
    And the <third> job "third" waits
    When a <newcomer> job "new" arrives
    Then "new" is <answer>
    And <victim> gives way
    When the running jobs are let go
    Then all the others finish

    Examples: reject refuses whoever comes
      | policy            | first       | second      | third       | newcomer    | answer   | victim   |
      | reject            | batch       | interactive | batch       | interactive | refused  | nobody   |
      | reject            | batch       | interactive | batch       | batch       | refused  | nobody   |

    Examples: drop-lru drops the oldest batch job, else the oldest interactive one
      | policy            | first       | second      | third       | newcomer    | answer   | victim   |
      | drop-lru          | interactive | batch       | batch       | interactive | accepted | "second" |
      | drop-lru          | interactive | batch       | batch       | batch       | accepted | "second" |
      | drop-lru          | interactive | interactive | interactive | interactive | accepted | "first"  |
      | drop-lru          | interactive | interactive | interactive | batch       | refused  | nobody   |

    Examples: shed-low-priority gives the place of the newest batch job to an interactive one
      | policy            | first       | second      | third       | newcomer    | answer   | victim   |
      | shed-low-priority | batch       | interactive | batch       | interactive | accepted | "third"  |
      | shed-low-priority | batch       | interactive | batch       | batch       | refused  | nobody   |
      | shed-low-priority | interactive | interactive | interactive | interactive | refused  | nobody   |

  Scenario: Who is dropped for somebody else is told so, and when to come back
    Given a service with 1 slot
      """
      [queue]
      capacity = 1
      policy = "drop-lru"
      """
    And the job "long" is running and takes its time
    And the batch job "report" is waiting
    When the client sends the job "chat"
    Then "chat" is accepted
    And "report" ends with QUEUE_FULL_DROP_LRU
    And its error says to come back after a while
    And "report" is DROPPED in the list of jobs

  Scenario: fail-fast accepts only what can start at once
    Given a service with 1 slot
      """
      [queue]
      policy = "fail-fast"
      """
    When the job "first" is running and takes its time
    And the client sends the job "second"
    Then "first" is accepted
    And "second" is refused with ADMISSION_REJECT because of "fail-fast"
    And the refusal says to come back after a while

  @ORCH-3006
  Scenario: A client that asks too often does not take the share of another
    Given ann has a token as client
    And bob has a token as client
    And a service with 1 slot
      """
      [throttle]
      requests_per_min = 2
      """
    When ann sends the job "first"
    And ann sends the job "second"
    And ann sends the job "third"
    And bob sends the job "other"
    Then "second" is accepted
    And "third" is refused with ADMISSION_REJECT because of "throttle-requests"
    And the refusal says to come back after a while
    And "other" is accepted

  @OC-CORE-1022
  Scenario: A job that waits longer than it may is told so
    Given a service with 1 slot
    And the job "long" is running and takes its time
    When the client sends the job "hasty" with
      | longest wait in ms | 1 |
    Then "hasty" ends with DEADLINE
    And "hasty" is EXPIRED in the list of jobs
