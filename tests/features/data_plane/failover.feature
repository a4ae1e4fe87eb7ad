@LO-304
Feature: When an engine dies
  Engines crash. A job of which nothing was delivered runs again. One whose words were delivered
  goes on as it asked to: the same words are made again and compared, or another engine goes on
  from the text, or it ends and says how much was delivered.

  Background:
    Given a service with these pools
      | pool  | slots |
      | left  | 1     |
      | right | 1     |

  Scenario: Nothing was delivered: the job runs again, and its client sees nothing of it
    Given the client sends the job "story" with
      | pause before the first word | 60000 |
    And "story" has started
    When the engine of "story" crashes
    And the running jobs are let go
    Then the events of "story" are started, words, outcome
    And "story" has said 16 words

  Scenario: The same words are made again and compared, and the story goes on at the very byte
    Given the client sends the slow job "story" with
      | on failure | verified replay |
    And "story" has said its first word
    When the engine of "story" crashes
    And the running jobs are let go
    Then the events of "story" are started, words, resumed, words, outcome
    And "story" is told that it was resumed by VERIFIED_REPLAY with a cold cache
    And "story" says what it would have said without the crash

  Scenario: Another engine goes on from the text
    Given the client sends the slow job "story" with
      | on failure | continue |
    And "story" has said its first word
    When the engine of "story" crashes
    And the running jobs are let go
    Then the events of "story" are started, words, resumed, words, outcome
    And "story" is told that it was resumed by CONTINUE with a cold cache
    And "story" has said 16 words

  Scenario: The job ends, and says how much was delivered
    Given the client sends the slow job "story" with
      | on failure | fail |
    And "story" has said its first word
    When the engine of "story" crashes
    Then "story" ends with WORKER_RESET
    And its error tells how many bytes were delivered
    And "story" has said 1 word

  Scenario: Every engine dies of it
    When the client sends the job "poison" with
      | engine dies after words | 0 |
    Then "poison" ends with REPLICA_EXHAUSTED
    And "poison" is FAILED in the list of jobs

  Scenario: A reader that comes after the crash reads the whole story
    Given the client sends the slow job "story" with
      | on failure | verified replay |
    And "story" has said its first word
    When the engine of "story" crashes
    And the running jobs are let go
    And "story" finishes
    And "ann" reads "story"
    And "bob" reads "story"
    Then "ann" and "bob" have read the same
