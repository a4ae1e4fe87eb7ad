Feature: Giving a job
  A client gives a job and is told at once whether it was accepted, where it stands in the queue,
  and when it should start and end. What is accepted is never forgotten; what is refused was never
  queued, and the refusal says what to change.

  Background:
    Given a service with 1 slot

  @ORCH-3004 @LO-206
  Scenario: On a free machine a job starts at once
    When the client sends the job "story"
    Then "story" is accepted at position 1
    And "story" should start at once
    And "story" should end after it starts
    And "story" finishes
    And "story" has said 16 words

  Scenario: A job that has to wait is told its place and when it should start
    Given the job "long" is running and takes its time
    When the client sends the job "first"
    And the client sends the job "second"
    Then "first" is accepted at position 1
    And "second" is accepted at position 2
    And "second" should start later than "first"

  @ORCH-3008
  Scenario: Slots are given in the order of arrival
    Given the job "long" is running and takes its time
    And the job "first" is waiting
    And the job "second" is waiting
    When the running jobs are let go
    Then the jobs start in the order "long", "first", "second"

  @ORCH-3004
  Scenario: Interactive jobs go before batch jobs
    Given the job "long" is running and takes its time
    And the batch job "report" is waiting
    When the client sends the job "chat"
    Then "report" is accepted at position 1
    And "chat" is accepted at position 1
    When the running jobs are let go
    Then the jobs start in the order "long", "chat", "report"

  @ORCH-3024
  Scenario: A request that is sent twice runs once
    When the client sends the job "story" with
      | request id | r-1 |
    And the client sends "story" again
    Then both answers to "story" name the same job
    And the service knows 1 job

  @ORCH-3024
  Scenario: One request id cannot stand for two different jobs
    Given the client sends the job "story" with
      | request id | r-1             |
      | prompt     | Tell me a story |
    When the client sends the job "poem" with
      | request id | r-1          |
      | prompt     | Tell me more |
    Then "poem" is refused with DUPLICATE
    And the service knows 1 job

  Scenario: A client may choose the id of its job, once
    Given the client sends the job "story" with
      | job id | my-story |
    When the client sends the job "other" with
      | job id | my-story      |
      | prompt | Another story |
    Then "story" is accepted
    And "other" is refused with DUPLICATE

  @ORCH-3024
  Scenario: Jobs without ids of their own are all different
    When the client sends the job "one"
    And the client sends the job "two"
    Then "one" and "two" are different jobs

  @LO-201
  Scenario: A job that no pool can ever serve is refused with what each pool lacks
    When the client sends the job "story" with
      | model | a-model-that-nobody-has |
    Then "story" is refused with INCOMPATIBLE_MODEL
    And the refusal says that pool "gpu" lacks the MODEL
    And a retry is of no use
    And "story" was never queued

  Scenario: A bad request is refused with every bad field
    When the client sends the job "story" with
      | temperature | -1 |
      | top p       | 7  |
    Then "story" is refused with INVALID_PARAMS
    And the refusal names the field "spec.sampling.temperature"
    And the refusal names the field "spec.sampling.top_p"
    And "story" was never queued

  @ORCH-3014
  Scenario: What is longer than every context is refused before it is queued
    When the client sends the job "story" with
      | context | 5000 |
    Then "story" is refused with INCOMPATIBLE_MODEL
    And the refusal says that pool "gpu" lacks the CONTEXT
    And "story" was never queued

  Scenario: A job with a deadline is told its chance to be in time
    When the client sends the job "story" with
      | deadline in seconds | 60 |
    Then "story" is told its chance to be in time
    And "story" finishes

  Scenario: Who gives no seed gets one, and can have the same text again with it
    When the client sends the job "any story" without a seed
    Then "any story" was given a seed, and was told which
    When the client asks for "any story" again with the seed that it was told
    Then both stories are the same to the last byte
