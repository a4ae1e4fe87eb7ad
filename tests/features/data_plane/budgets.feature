@ORCH-3099
Feature: Budgets
  A session may have a budget of tokens, time or money. What a job may take at most is set aside
  when it is accepted; what it really took is settled when it ends, and the rest comes back. So a
  budget cannot be overspent by jobs that run side by side. (In these stories the prompt counts 4
  tokens, and every word is a token.)

  Scenario: What a job may take is set aside, and settled when it ends
    Given a service with 1 slot
    And the job "long" is running and takes its time
    When the client sends the job "story" with
      | session                  | chat |
      | session budget of tokens | 100  |
      | most tokens              | 40   |
    Then "story" is told that 56 tokens are left for further jobs
    And the session "chat" has set aside 44 tokens and spent 0
    When the running jobs are let go
    And "story" finishes
    And "story" has said 16 words
    Then the session "chat" has set aside 0 tokens and spent 20
    And the session "chat" has 80 tokens left

  Scenario: Jobs side by side cannot overspend together
    Given a service with 2 slots
    And the client sends the slow job "first" with
      | session                  | chat |
      | session budget of tokens | 50   |
      | most tokens              | 40   |
    When the client sends the job "second" with
      | session     | chat |
      | most tokens | 20   |
    Then "second" is refused with ADMISSION_REJECT because of "session-budget-tokens"
    And the refusal says to come back after a while
    When the running jobs are let go
    And "first" finishes
    And the client sends "second" again
    Then "second" is accepted

  Scenario: A spent budget stays spent, and a retry does not help
    Given a service with 1 slot
    And the client sends the job "story" with
      | session                  | chat |
      | session budget of tokens | 30   |
      | most tokens              | 26   |
    And "story" finishes
    When the client sends the job "more" with
      | session     | chat |
      | most tokens | 10   |
    Then "more" is refused with ADMISSION_REJECT because of "session-budget-tokens"
    And a retry is of no use
    And the refusal tells: "10 of 30"

  Scenario: A job that bounds nothing gets what is left, and stops there
    Given a service with 1 slot
    When the client sends the job "story" with
      | session                  | chat |
      | session budget of tokens | 10   |
    Then "story" is told that 0 tokens are left for further jobs
    And "story" finishes
    And "story" has said 6 words
    And the session "chat" has set aside 0 tokens and spent 10

  Scenario: A cancelled job pays for what it said
    Given a service with 1 slot
    And the client sends the slow job "story" with
      | session                  | chat |
      | session budget of tokens | 100  |
      | most tokens              | 40   |
    When "story" has said its first word
    And the client cancels "story"
    Then the session "chat" comes to have spent 5 tokens, with nothing set aside

  Scenario: A job that never ran pays nothing
    Given a service with 1 slot
    And the job "long" is running and takes its time
    And the client sends the job "story" with
      | session                  | chat |
      | session budget of tokens | 100  |
      | most tokens              | 40   |
    When the client cancels "story"
    Then the session "chat" has set aside 0 tokens and spent 0

  Scenario: Words that are made again after a crash are free
    Given a service with these pools
      | pool  | slots |
      | left  | 1     |
      | right | 1     |
    And the client sends the slow job "story" with
      | session                  | chat            |
      | session budget of tokens | 100             |
      | most tokens              | 40              |
      | on failure               | verified replay |
    And "story" has said its first word
    When the engine of "story" crashes
    And the running jobs are let go
    And "story" finishes
    And "story" has said 16 words
    Then the session "chat" has set aside 0 tokens and spent 20

  Scenario: A job that is dropped for another gives back what it had set aside
    Given a service with 1 slot
      """
      [queue]
      capacity = 1
      policy = "drop-lru"
      """
    And the job "long" is running and takes its time
    And the client sends the job "report" with
      | class                    | batch |
      | session                  | chat  |
      | session budget of tokens | 100   |
      | most tokens              | 40    |
    When the client sends the job "chat"
    Then "report" ends with QUEUE_FULL_DROP_LRU
    And the session "chat" has set aside 0 tokens and spent 0
    And the session "chat" has had 0 of its 8 turns

  Scenario: A job whose engine failed pays for what was delivered, and no more
    Given a service with 1 slot
    When the client sends the job "story" with
      | session                  | chat |
      | session budget of tokens | 100  |
      | most tokens              | 40   |
      | fails after words        | 3    |
    Then "story" ends with ENGINE_ERROR
    And the session "chat" has set aside 0 tokens and spent 7

  Scenario: Jobs of one stream are held to the same budget
    Given a service with 1 slot
    When the client gives 4 jobs of 20 tokens each on one stream, in a session with a budget of 50
    Then 2 of them finish, and the others are refused because of "session-budget-tokens"
    And the session "chat" has set aside 0 tokens and spent 40

  Scenario: On the command line
    Given a service with 1 slot
    When somebody types "llorch run --model tiny --session chat --session-tokens 60 --max-tokens 5 Hello."
    Then the command succeeds and shows " "
    And the session "chat" has set aside 0 tokens and spent 6
    When somebody types "llorch sessions show chat"
    Then the command succeeds and shows "60" and "54"
    When somebody types "llorch run --model tiny --session chat --max-tokens 70 Hello."
    Then the command fails with 4 and says "54 of 60"

  Scenario: Money
    Given a service with 1 slot
      """
      [admission.prices.tiny]
      input_micros_per_1k_tokens = 1000
      output_micros_per_1k_tokens = 2000
      """
    And the job "long" is running and takes its time
    When the client sends the job "story" with
      | session                | chat |
      | session budget of cost | 100  |
      | most tokens            | 40   |
    Then "story" is told that 16 millionths are left for further jobs
    When the running jobs are let go
    And "story" finishes
    Then the session "chat" has spent 36 millionths
    When the client sends the job "novel" with
      | session     | chat |
      | most tokens | 40   |
    Then "novel" is refused with ADMISSION_REJECT because of "session-budget-cost"

  Scenario: Time at the engine
    Given a service with 1 slot
    When the client sends the slow job "story" with
      | session                      | chat  |
      | session budget of time in ms | 10000 |
      | budget of time in ms         | 50    |
    Then "story" is told that 9950 ms are left for further jobs
    And "story" ends with DECODE_TIMEOUT
    And the session "chat" comes to have spent at least 50 ms, with nothing set aside
    When the client sends the job "novel" with
      | session              | chat  |
      | budget of time in ms | 10000 |
    Then "novel" is refused with ADMISSION_REJECT because of "session-budget-time"

  @ORCH-3014
  Scenario: A job that its own budget cannot hold is refused at the door
    Given a service with 1 slot
    When the client sends the job "story" with
      | budget of tokens | 20 |
      | most tokens      | 40 |
    Then "story" is refused with ADMISSION_REJECT because of "budget"
    And a retry is of no use
    And "story" was never queued

  Scenario: The service bounds every session, whatever its client asks for
    Given a service with 1 slot
      """
      [sessions]
      budget_tokens = 50
      """
    When the client sends the job "story" with
      | session                  | chat |
      | session budget of tokens | 1000 |
      | most tokens              | 10   |
    Then "story" is told that 36 tokens are left for further jobs

  Scenario: A later job cannot change the budget of its session
    Given a service with 1 slot
    And the client sends the job "story" with
      | session                  | chat |
      | session budget of tokens | 30   |
      | most tokens              | 10   |
    When the client sends the job "more" with
      | session                  | chat |
      | session budget of tokens | 3000 |
      | most tokens              | 10   |
    Then "more" is refused with INVALID_PARAMS
    And the refusal names the field "spec.session_budgets"

  @ORCH-3100
  Scenario: While words come, the client is told what is left
    Given a service with 1 slot
    And the job "long" is running and takes its time
    And the client sends the slow job "story" with
      | session                  | chat |
      | session budget of tokens | 100  |
      | most tokens              | 40   |
    And "story" is told that it waits at position 1
    When the client cancels "long"
    Then with its first word "story" is told that 95 tokens are left

  Scenario: What was spent and what is set aside outlive a restart
    Given a service with 2 slots
    And the client sends the job "story" with
      | session                  | chat |
      | session budget of tokens | 100  |
      | most tokens              | 20   |
    And "story" finishes
    And the client sends the slow job "novel" with
      | session     | chat |
      | most tokens | 30   |
    And "novel" has said its first word
    When orchestratord is restarted
    Then the session "chat" has set aside 34 tokens and spent 20
    When the running jobs are let go
    And "novel" finishes
    Then the session "chat" has set aside 0 tokens and spent 40
