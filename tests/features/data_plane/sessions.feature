@ORCH-3021 @ORCH-3022
Feature: Sessions
  A session is a conversation: the jobs that carry the same session id. It has so many turns, is
  forgotten when it was silent for so long, belongs to the client that opened it, and outlives a
  restart.

  Scenario: A conversation has its turns, and then another one begins
    Given a service with 1 slot
      """
      [sessions]
      turns_max = 2
      """
    And the client sends the job "hello" in the session "chat"
    And "hello" finishes
    And the client sends the job "go on" in the session "chat"
    And "go on" finishes
    When the client sends the job "once more" in the session "chat"
    Then "once more" is refused with ADMISSION_REJECT because of "session-turns"
    And a retry is of no use
    And the session "chat" has had 2 of its 2 turns
    When the client deletes the session "chat"
    And the client sends "once more" again
    Then "once more" is accepted
    And the session "chat" has had 1 of its 2 turns

  Scenario: A job that never ran was no turn
    Given a service with 1 slot
    And the job "long" is running and takes its time
    And the client sends the job "hello" in the session "chat"
    When the client cancels "hello"
    Then the session "chat" has had 0 of its 8 turns

  Scenario: A silent session is forgotten
    Given a service with 1 slot
      """
      [sessions]
      ttl_ms = 50
      """
    When the client sends the job "hello" in the session "chat"
    And "hello" finishes
    Then the session "chat" is forgotten after a while

  Scenario: A session with a job under way is not silent
    Given a service with 1 slot
      """
      [sessions]
      ttl_ms = 1
      """
    When the client sends the slow job "hello" with
      | session | chat |
    Then the session "chat" is open, with 1 job under way

  Scenario: The same id of another client is another session
    Given ann has a token as client
    And bob has a token as client
    And a service with 1 slot
    When ann sends the job "mine" in the session "chat"
    And "mine" finishes
    Then ann has the session "chat"
    But bob has no session "chat"

  Scenario: Deleting a session cancels nothing
    Given a service with 1 slot
    And the client sends the slow job "hello" with
      | session | chat |
    When the client deletes the session "chat"
    And the running jobs are let go
    Then "hello" finishes
    But there is no session "chat"

  Scenario: A session outlives a restart
    Given a service with 1 slot
    And the client sends the job "hello" in the session "chat"
    And "hello" finishes
    When orchestratord is restarted
    Then the session "chat" has had 1 of its 8 turns

  @ORCH-3009
  Scenario: A conversation goes back to the pool that remembers it
    Given two pools "a" and "b" with a real engine each, chosen by load alone
    And the pool "a" is drained
    And the client sends the job "hello" with
      | session         | chat                 |
      | reuse the cache | yes                  |
      | prompt          | Once upon a time, in |
      | most tokens     | 4                    |
    And "hello" finishes
    And the drain of the pool "a" is ended
    When the client sends the job "go on" with
      | session         | chat                                  |
      | reuse the cache | yes                                   |
      | prompt          | Once upon a time, in a forest far off |
      | most tokens     | 4                                     |
    And "go on" finishes
    And the client sends the job "stranger" with
      | most tokens | 4 |
    Then "go on" ran on the pool "b", where its words were still in the cache
    And "stranger" ran on the pool "a", where nothing was in the cache
    And the session "chat" is remembered by the pool "b"

  Scenario: Sessions on the command line
    Given a service with 1 slot
    And the client sends the job "hello" with
      | session                  | chat |
      | session budget of tokens | 500  |
    And "hello" finishes
    When somebody types "llorch sessions"
    Then the command succeeds and shows "chat" and "1/8"
    When somebody types "llorch sessions delete chat"
    Then the command succeeds and shows "session chat is forgotten"
    And there is no session "chat"
