@ORCH-3031
Feature: The catalog of models
  An operator says once what a model is: its names, its digest, what it needs. Clients name a model
  and nothing else. A model may be retired, and then says what to use instead.

  Scenario: A client need only name a model, by any of its names
    Given a service with 1 slot
    When the operator registers the model "tiny" with
      | alias           | chat |
      | engine          | mock |
      | expected tokens | 12   |
    And the client sends the job "story" with
      | model | chat |
    Then "story" is accepted
    And "story" finishes
    And "story" ran as the model "tiny", with what the catalog says of it
    And the service shows the model "tiny" as active

  Scenario: What a job does not say, the catalog says for it
    Given a service with 1 slot
    When the operator registers the model "tiny" with
      | engine | another-engine |
    And the client sends the job "story"
    Then "story" is refused with INCOMPATIBLE_ENGINE

  @ORCH-3037
  Scenario: A pool with another file under the same name gets no job
    Given a service with 1 slot
    When the operator registers the model "tiny" with
      | digest | sha256:0000000000000000000000000000000000000000000000000000000000000000 |
    And the client sends the job "story"
    Then "story" is refused with INCOMPATIBLE_MODEL
    And "story" was never queued
    When the operator verifies the model "tiny"
    Then it is not verified, for the pool "gpu" reports another digest

  @ORCH-3037
  Scenario: A model without a signature is taken, with a warning
    Given a service with 1 slot
    When the operator registers the model "tiny" with the digest that its pool reports
    Then the operator is warned of the missing signature
    When the operator verifies the model "tiny"
    Then it is verified
    And the metrics count the verification

  @HME-031
  Scenario: A change holds for the next job at once, and no stream notices
    Given a service with 1 slot
    And the operator registers the model "tiny" with
      | alias | chat |
    And the job "long" is running and takes its time
    When the operator updates the model "tiny" with
      | alias | assistant |
    And the client sends the job "old name" with
      | model | chat |
    And the client sends the job "new name" with
      | model | assistant |
    Then "old name" is refused with INCOMPATIBLE_MODEL
    And "new name" is accepted
    When the running jobs are let go
    Then "long" finishes

  Scenario: A retired model takes no more jobs, serves what it took, and then its pools close
    Given a service with 1 slot
    And the operator registers the model "tiny" with
      | alias | chat |
    And the job "long" is running and takes its time
    And the job "waiting" is waiting
    When the operator retires the model "tiny" in favour of "tiny-2", with an hour of grace
    And the client sends the job "late"
    Then "late" is refused with MODEL_RETIRED
    And the refusal tells: "tiny-2"
    And the pool "gpu" is READY
    When the operator retires the model "tiny" in favour of "tiny-2", with no grace
    Then the pool "gpu" is UNREADY
    And "waiting" ends with MODEL_RETIRED
    And the service shows the model "tiny" as retired
    When the running jobs are let go
    Then "long" finishes
    When the operator activates the model "tiny"
    And the client sends the job "again"
    Then "again" finishes

  Scenario: Two operators do not undo each other's work
    Given a service with 1 slot
    And the operator registers the model "tiny" with
      | alias | chat |
    When the operator updates the model "tiny" with
      | alias | assistant |
    And another operator, who has seen revision 1, updates the model "tiny"
    Then the call is refused with REVISION_CONFLICT

  Scenario: A service may take models of the catalog alone
    Given a service with 1 slot
      """
      [catalog]
      required = true
      """
    When the client sends the job "story"
    Then "story" is refused with MODEL_UNKNOWN
    When the operator registers the model "tiny" with
      | engine | mock |
    And the client sends "story" again
    Then "story" is accepted

  Scenario: The catalog outlives a restart
    Given a service with 1 slot
    And the operator registers the model "tiny" with
      | alias | chat |
    When orchestratord is restarted
    And the client sends the job "story" with
      | model | chat |
    Then "story" finishes

  Scenario: On the command line
    Given a service with 1 slot
    When somebody types "llorch models register tiny --alias chat --engine mock"
    Then the command succeeds and shows "model tiny is registered"
    When somebody types "llorch models"
    Then the command succeeds and shows "ACTIVE" and "chat"
