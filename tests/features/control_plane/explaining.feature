@LO-207
Feature: Why did that happen?
  Every decision is kept with all that it was made of, can be asked for, and can be made again on
  any machine with the same result.

  Scenario: Why a job ran where it ran
    Given a service with these pools
      | pool  | slots |
      | left  | 1     |
      | right | 1     |
    And the job "long" is running and takes its time
    When the client sends the job "story"
    And "story" finishes
    And the client asks why "story" ran where it ran
    Then it ran on the only pool that was free
    And the other pool is listed with the reason NO_SLOT

  Scenario: Why a job waits
    Given a service with 1 slot
    And the job "long" is running and takes its time
    And the job "story" is waiting
    When the client asks why "story" waits
    Then it waits for the pool "gpu" because of NO_SLOT

  Scenario: On the command line, and again from the recording
    Given a service with 1 slot
    When the client sends the job "story" with
      | job id | story |
    And "story" finishes
    And somebody types "llorch explain story"
    Then the command succeeds and shows "gpu" and "only_candidate"
    When the service has ended
    And somebody types "llorch replay {directory}/flight"
    Then the command succeeds and shows "All equal" and "decisions"
