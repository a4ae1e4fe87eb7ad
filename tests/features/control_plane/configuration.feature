@HME-003
Feature: Changing the configuration while the service runs
  An operator changes the file and has it read again. What is safe is in force at once, what needs
  a restart is named, and a file with a mistake changes nothing.

  Scenario: A larger queue, while a job runs
    Given a service that reads its configuration from a file, with 1 slot
      """
      [queue]
      capacity = 1
      """
    And the job "long" is running and takes its time
    And the job "next" is waiting
    When the operator changes the file, and has it read again
      """
      [queue]
      capacity = 2
      """
    Then it is told that "queue.capacity" is in force
    When the client sends the job "last"
    Then "last" is accepted at position 2
    When the running jobs are let go
    Then "long" finishes
    And "last" finishes

  Scenario: What needs a restart is named, and not in force
    Given a service that reads its configuration from a file, with 1 slot
      """
      [queue]
      capacity = 1
      """
    When the operator changes the file, and has it read again
      """
      [recorder]
      segments_max = 5
      [queue]
      capacity = 1
      """
    Then it is told that "recorder.segments_max" waits for a restart
    And "recorder.segments_max" is still 32

  Scenario: A mistake changes nothing, and is named
    Given a service that reads its configuration from a file, with 1 slot
      """
      [queue]
      capacity = 1
      """
    When the operator changes the file, and has it read again
      """
      [queue]
      capacity = 5
      polici = "reject"
      """
    Then it is told: "did you mean queue.policy?"
    And "queue.capacity" is still 1

  Scenario: On the command line
    Given a service that reads its configuration from a file, with 1 slot
      """
      [queue]
      capacity = 7
      """
    When somebody types "llorch config show"
    Then the command succeeds and shows "queue.capacity = 7"
    When somebody types "llorch config reload"
    Then the command succeeds and shows "nothing changed"
