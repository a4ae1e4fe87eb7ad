Feature: Who may do what
  The service listens on this machine alone unless it is told otherwise, and then it asks everybody
  for a token. A token has a role. What others may reach unprotected does not start.

  @AUTH-1001
  Scenario: Without a token nobody gets anything but the state of health
    Given ann has a token as client
    And a service with 1 slot
    When the client sends the job "story"
    Then "story" is refused with UNAUTHENTICATED
    And a retry is of no use
    But the service says that it is SERVING

  @AUTH-1003
  Scenario: A client gives jobs, and an operator drains pools
    Given ann has a token as client
    And olga has a token as admin
    And a service with 1 slot
    When ann sends the job "story"
    Then "story" is accepted
    When ann drains the pool "gpu"
    Then the call is refused with PERMISSION_DENIED
    When olga drains the pool "gpu"
    Then the pool "gpu" is DRAINING

  @AUTH-1007
  Scenario: A GPU host without a token is not taken
    Given ann has a token as client
    And a service without any pool
    When a GPU host without a token tries to register
    Then the service knows no pool, and the host is told what to set

  @AUTH-1008 @ORCH-3302
  Scenario: Tokens are in no log
    Given ann has a token as client
    And a service with 1 slot
    When ann sends the job "story"
    And somebody comes with a token that nobody gave
    Then that call is refused, and neither token is in any log
    But the log tells six digits of the foreign one

  @AUTH-1002 @ORCH-3035 @HME-002
  Scenario Outline: What others could reach unprotected does not start: <what is wrong>
    When somebody starts orchestratord with
      """
      <configuration>
      """
    Then it does not start and says "<words>"

    Examples:
      | what is wrong                     | configuration                      | words                          |
      | no token, all addresses           | listen = "0.0.0.0:7070"            | nobody would be asked          |
      | tokens in the clear               | listen = "192.0.2.1:7070"          | in the clear                   |
      | metrics for everybody             | metrics_listen = "0.0.0.0:7072"    | use an SSH tunnel              |

  @HME-003 @ORCH-3030
  Scenario: A key that does not exist is named with the nearest one that does
    When somebody starts orchestratord with
      """
      [queue]
      capasity = 5
      """
    Then it does not start and says "queue.capacity"
