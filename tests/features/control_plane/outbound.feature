@ORCH-3080 @ORCH-3206
Feature: What clients' tools may connect to
  A tool that works for a job asks before it connects to anything. Nothing is allowed unless the
  operator says so, there is one switch for all of it, and every answer is logged.

  Scenario: By default nobody may connect to anything
    Given a service without any pool
    When a tool asks for "https://docs.example.org/page"
    Then it is denied by "outbound.enabled"

  Scenario Outline: An allowed host, and what is not: <address>
    Given a service without any pool
      """
      [outbound]
      enabled = true
      allow = ["docs.example.org", "*.python.org"]
      deny = ["test.python.org"]
      """
    When a tool asks for "<address>"
    Then it is <answer>

    Examples:
      | address                       | answer  |
      | https://docs.example.org/page | allowed |
      | https://www.python.org        | allowed |
      | https://test.python.org       | denied  |
      | http://docs.example.org/page  | denied  |
      | https://elsewhere.example     | denied  |

  Scenario: An address that programs read differently is no question
    Given a service without any pool
      """
      [outbound]
      enabled = true
      allow = ["*"]
      """
    When a tool asks for "https://docs.example.org@elsewhere.example/"
    Then the call is refused with INVALID_PARAMS

  Scenario: Every decision is in the log, and the path of the address is not
    Given a service without any pool
    When a tool asks for "https://docs.example.org/my-secret-page" on behalf of the job "j-1"
    Then the log tells of the decision with the job "j-1" and the host "docs.example.org"
    But nothing of "my-secret-page" is in any log

  Scenario: In a script
    Given a service without any pool
    When somebody types "llorch policy check https://docs.example.org/page"
    Then the command fails with 5 and says "denied"
