@ORCH-3097
Feature: Artifacts
  Plans, diffs, traces and long inputs are kept by what they hold: equal content is kept once, what
  comes back is what was put, and everything says what it was made from.

  Scenario: What was put comes back, to the byte
    Given a service without any pool
    When the client puts the plan "plan" with the text "first this, then that"
    Then "plan" can be read and is "first this, then that"
    When the client puts the plan "same" with the text "first this, then that"
    Then "same" and "plan" are one artifact

  @ORCH-3098
  Scenario: Tags and lineage
    Given a service without any pool
    And the client puts the plan "plan" with the text "the idea" and the tag "release"
    When the client puts the diff "diff" with the text "+ done", made from "plan"
    Then "plan" is found by the tag "release"
    And "diff" is found as a child of "plan"
    And the ancestors of "diff" are "plan"

  Scenario: What one client keeps is not there for another
    Given ann has a token as client
    And bob has a token as client
    And a service without any pool
    When ann puts the plan "plan" with the text "for me"
    And bob asks for "plan"
    Then the call is refused with NOT_FOUND

  Scenario: A long input lies in an artifact, and stays while a job needs it
    Given a service with 1 slot
    And the client puts the input "book" with the text "Tell me all of it."
    When the client sends a slow job "story" whose input is "book"
    And "story" has said its first word
    And the client deletes the artifact "book"
    Then the call is refused with ARTIFACT_IN_USE
    When the running jobs are let go
    And "story" finishes
    And the client deletes the artifact "book"
    Then the artifact "book" is gone

  Scenario: Content that was damaged on the disk is never handed out
    Given a service without any pool
    And the client puts the plan "plan" with the text "first this, then that"
    When somebody changes a byte of it on the disk
    And the client asks for "plan"
    Then the call is refused with DATA_LOSS
    And a retry is of no use

  Scenario: There is room for so much, and nothing is thrown out for something new
    Given a service without any pool
      """
      [artifacts]
      count_max = 1
      """
    And the client puts the plan "plan" with the text "the idea"
    When the client puts the plan "another" with the text "a better idea"
    Then the call is refused with ADMISSION_REJECT
    And the refusal names the rule "artifact-count"
    And "plan" can be read and is "the idea"

  Scenario: Artifacts outlive a restart
    Given a service without any pool
    And the client puts the plan "plan" with the text "the idea"
    When orchestratord is restarted
    Then "plan" can be read and is "the idea"

  Scenario: On the command line
    Given a service without any pool
    And the file "plan.md" holds "the idea"
    When somebody types "llorch artifacts put {directory}/plan.md --kind plan --tag release"
    And somebody types "llorch artifacts list --tag release"
    Then the command succeeds and shows "plan" and "release"
