@ORCH-3095 @ORCH-3096
Feature: What the service can do
  Before it sends work a client may ask what there is: models, engines, contexts, how many jobs run
  at once, and the limits that hold for it.

  Scenario: Models, contexts and how many jobs run at once
    Given a service with these pools
      | pool  | slots | model_id | ctx_max |
      | big   | 3     | tiny     | 8192    |
      | small | 1     | tiny     | 2048    |
      | other | 2     | fable    | 4096    |
    When the client asks what the service can do
    Then the models are "fable, tiny"
    And 4 jobs of "tiny" run at once
    And every pool of "tiny" takes a context of 2048 tokens, and one takes 8192
    And the version of the interface is told, and the features

  Scenario: A pool that is taken out counts no more
    Given a service with these pools
      | pool  | slots |
      | left  | 3     |
      | right | 1     |
    When the operator drains the pool "left"
    And the client asks what the service can do
    Then 1 job of "tiny" runs at once

  Scenario: Each client is told its own limits, and meets them
    Given ann has a token as client
    And bob has a token as client
    And a service with 1 slot
      """
      [throttle.identities.ann]
      requests_per_min = 1
      """
    When ann asks what the service can do
    Then she is told that she may send 1 job a minute
    When bob asks what the service can do
    Then he is told no such limit
    When ann sends the job "first"
    And ann sends the job "second"
    Then "second" is refused with ADMISSION_REJECT because of "throttle-requests"

  Scenario: On the command line
    Given a service with 1 slot
    When somebody types "llorch capabilities"
    Then the command succeeds and shows "tiny" and "artifact_input_bytes_max"
