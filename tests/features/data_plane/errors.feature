@ORCH-3016 @ORCH-3017
Feature: What a client is told when something goes wrong
  Every error has a stable reason to decide by, a code that every gRPC library knows, and says
  whether the same request can succeed later. Whoever reads only the code does no harm.

  Scenario Outline: When <case>
    When this happens: <case>
    Then the client is told <reason>, with the code <code>
    And it is told: <advice>

    Examples: Too much at once
      | case                                              | reason              | code               | advice                     |
      | the queue is full                                 | ADMISSION_REJECT    | RESOURCE_EXHAUSTED | try again after so long    |
      | a client asks more often than it may              | ADMISSION_REJECT    | RESOURCE_EXHAUSTED | try again after so long    |
      | no slot is free where nobody waits                | ADMISSION_REJECT    | RESOURCE_EXHAUSTED | try again after so long    |
      | the budget of a session is spent                  | ADMISSION_REJECT    | RESOURCE_EXHAUSTED | do not try the same again  |
      | a waiting job gives way to a newer one            | QUEUE_FULL_DROP_LRU | RESOURCE_EXHAUSTED | try again after so long    |

    Examples: The request cannot be served
      | case                                              | reason                   | code                | advice                    |
      | a field has a value that it cannot have           | INVALID_PARAMS           | INVALID_ARGUMENT    | do not try the same again |
      | the request cannot be read                        | INVALID_PARAMS           | INVALID_ARGUMENT    | do not try the same again |
      | nobody has the model                              | INCOMPATIBLE_MODEL       | FAILED_PRECONDITION | do not try the same again |
      | nobody runs the engine                            | INCOMPATIBLE_ENGINE      | FAILED_PRECONDITION | do not try the same again |
      | nobody has the devices                            | INCOMPATIBLE_DEVICE_MASK | FAILED_PRECONDITION | do not try the same again |
      | a request id comes back with another job          | DUPLICATE                | ALREADY_EXISTS      | do not try the same again |
      | nobody knows the job                              | NOT_FOUND                | NOT_FOUND           | do not try the same again |
      | an artifact is deleted that a job still needs     | ARTIFACT_IN_USE          | FAILED_PRECONDITION | do not try the same again |
      | the content of an artifact was damaged on the disk | DATA_LOSS               | DATA_LOSS           | do not try the same again |
      | a reader shows a text that was never sent         | RESUME_WINDOW            | OUT_OF_RANGE        | do not try the same again |

    Examples: The catalog says otherwise
      | case                                              | reason              | code                | advice                    |
      | a model was retired                               | MODEL_RETIRED       | FAILED_PRECONDITION | do not try the same again |
      | the catalog alone counts, and has no such model   | MODEL_UNKNOWN       | NOT_FOUND           | do not try the same again |
      | a model is deleted that jobs still need           | MODEL_IN_USE        | FAILED_PRECONDITION | do not try the same again |
      | somebody else has changed the model meanwhile     | REVISION_CONFLICT   | ABORTED             | do not try the same again |

    Examples: The service cannot serve now
      | case                                              | reason              | code               | advice                     |
      | no pool is registered                             | POOL_UNAVAILABLE    | UNAVAILABLE        | try again after so long    |
      | no pool is ready where nobody waits               | POOL_UNREADY        | UNAVAILABLE        | try again after so long    |
      | the journal cannot be written                     | STORE_UNAVAILABLE   | UNAVAILABLE        | try again after so long    |

    Examples: The job was accepted, and did not end well
      | case                                              | reason              | code               | advice                     |
      | every engine that could serve it died             | REPLICA_EXHAUSTED   | UNAVAILABLE        | try again                  |
      | its deadline came before its end                  | DEADLINE            | DEADLINE_EXCEEDED  | do not try the same again  |
      | it waited longer than it wanted to                | DEADLINE            | DEADLINE_EXCEEDED  | do not try the same again  |
      | it took longer than it may                        | DECODE_TIMEOUT      | DEADLINE_EXCEEDED  | do not try the same again  |
      | its engine died with half of the words delivered  | WORKER_RESET        | ABORTED            | try again                  |
      | its engine failed                                 | ENGINE_ERROR        | UNKNOWN            | do not try the same again  |
      | its engine ran out of memory                      | ENGINE_ERROR        | RESOURCE_EXHAUSTED | do not try the same again  |

    Examples: Who asks
      | case                                              | reason              | code               | advice                     |
      | somebody asks without a token                     | UNAUTHENTICATED     | UNAUTHENTICATED    | do not try the same again  |
      | somebody asks for what is not theirs to ask       | PERMISSION_DENIED   | PERMISSION_DENIED  | do not try the same again  |
