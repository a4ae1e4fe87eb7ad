"""The HTTP server inside xllamacpp as a program: `llama_http.py -m FILE --port N -np N -c TOKENS`.

It takes what llama-server takes in a `launch` table, and the key from LLAMA_API_KEY as well.
"""

import argparse
import os
import signal


def main() -> None:
    """Serves until a signal ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", dest="model")
    parser.add_argument("--port", type=int)
    parser.add_argument("-np", dest="slots", type=int)
    parser.add_argument("-c", dest="ctx_tokens", type=int)
    arguments = parser.parse_args()

    # Imported here, because tests import this file for its place.
    import xllamacpp  # noqa: PLC0415

    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.port = arguments.port
    params.n_parallel = arguments.slots
    params.n_ctx = arguments.ctx_tokens
    params.kv_unified = params.ctx_shift = params.fit_params = params.warmup = params.ui = False
    params.n_batch = params.n_ubatch = 16
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = arguments.slots + 6
    params.cache_ram_mib = 0
    params.endpoint_slots = params.endpoint_metrics = params.offline = True
    params.verbosity = 1
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    server = xllamacpp.Server(params)
    print("serving at", server.listening_address, flush=True)  # noqa: T201 - for its log
    # The destructors of a loaded model can block for a minute.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.pause()


if __name__ == "__main__":
    main()
