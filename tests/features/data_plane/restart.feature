@LO-305 @processes
Feature: When orchestratord is killed
  Accepted means accepted: what was promised is in the journal before the answer leaves. A new
  orchestratord finds every job again, engines go on meanwhile, and readers lose nothing.
  (Both services are processes of their own here, and the kill is SIGKILL.)

  Scenario: A running job, a waiting job and what a session spent survive the kill
    Given both services run as processes of their own, with 1 slot
    And the client sends the job "opening" with
      | session                  | chat |
      | session budget of tokens | 1000 |
      | most tokens              | 20   |
    And "opening" finishes
    And the client sends the job "long" with
      | words               | 60   |
      | pause between words | 50   |
      | session             | chat |
      | most tokens         | 100  |
    And the client sends the job "next" as request "r-1"
    And "ann" reads "long"
    When "ann" has read 5 words
    And orchestratord is killed and started again
    Then the client that sends "next" again is told that it is the same job
    And "ann" reads on to the end: 60 words, none lost and none twice
    And "next" finishes
    And the session "chat" has set aside 0 tokens and spent 84
