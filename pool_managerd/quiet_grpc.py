"""gRPC writes nothing to stderr by itself. Imported before gRPC, which reads this once. HME-030.

Else every connection that is no TLS writes a line there, which is not JSON. Who looks for trouble
of gRPC itself sets the variable.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
