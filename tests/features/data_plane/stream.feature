Feature: Reading what a job says
  A job's events come in one order: it waits, it starts, it says words, it ends. Any number of
  readers may follow, leave and come back, and each can prove that it has every byte once.

  Background:
    Given a service with 1 slot

  @ORCH-2002 @ORCH-3029
  Scenario: The events of a job
    Given the job "story" is running and takes its time
    When the running jobs are let go
    Then the events of "story" are started, words, outcome
    And the start of "story" tells the position 1 and when it should have started
    And the end of "story" tells tokens and times

  @ORCH-3100 @HME-021 @ORCH-3023
  Scenario: While words come, the client is told how it goes
    Given the job "long" is running and takes its time
    And the client sends the slow job "story" with
      | deadline in seconds | 60 |
    And "story" is told that it waits at position 1
    When the client cancels "long"
    Then with its first words "story" is told how many jobs wait and its chance to be in time

  Scenario: Who waits is told the place in the queue
    Given the job "long" is running and takes its time
    When the client sends the job "story"
    Then "story" is told that it waits at position 1
    When the running jobs are let go
    Then "story" finishes

  Scenario: Several readers read the same
    Given the client sends the slow job "story" with
      | words | 6 |
    And "ann" reads "story"
    When the engine says 2 more words
    And "ann" has read 3 words
    And "bob" reads "story"
    And the running jobs are let go
    Then "ann" and "bob" have read the same

  Scenario: Who comes late reads all of it
    Given the client sends the job "story"
    And "story" finishes
    When "ann" reads "story"
    And "bob" reads "story"
    Then "ann" and "bob" have read the same

  @LO-301
  Scenario: A reader that lost its connection goes on at the very byte
    Given the client sends the slow job "story" with
      | words | 8 |
    And "ann" reads "story"
    When the engine says 3 more words
    And "ann" has read 4 words
    And "ann" loses the connection
    And the engine says 2 more words
    And "ann" comes back to "story" with what was read
    And the running jobs are let go
    Then "ann" has all of "story", and no word twice

  @LO-301
  Scenario: A reader whose text is not what was sent is told so
    Given the client sends the slow job "story" with
      | words | 8 |
    And "ann" reads "story"
    When "ann" has read 1 word
    And "ann" loses the connection
    And "ann" comes back to "story" with a text that was never sent
    Then the call is refused with RESUME_WINDOW
    And a retry is of no use

  Scenario: A job goes on when its reader leaves
    Given the client sends the slow job "story" with
      | words | 4 |
    And "ann" reads "story"
    When "ann" has read 1 word
    And "ann" loses the connection
    And the running jobs are let go
    Then "story" finishes
    And "story" has said 4 words

  @LO-303
  Scenario: A job that nobody listens to is cancelled, if it asked for that
    Given the service waits 300 ms for somebody to listen
    And the client sends the slow job "story" with
      | when nobody listens | cancel |
    And "ann" reads "story"
    When "ann" has read 1 word
    And "ann" loses the connection
    Then "story" is cancelled by itself

  @LO-306
  Scenario: Many jobs share one connection
    When the client runs 20 jobs on one stream
    Then all of them finish, each with its own words
