# SPDX-License-Identifier: Apache-2.0
"""What a message may hold, in either direction."""

from llamaorch_client.errors import ErrorDetail, InvalidParamsError

MESSAGE_BYTES_MAX = 4 * 1024 * 1024


def check_size(size_bytes: int) -> None:
    """Raises InvalidParamsError for a request that no message can hold; nothing is sent then."""
    if size_bytes > MESSAGE_BYTES_MAX:
        text = (
            f"the request has {size_bytes} bytes, a message at most {MESSAGE_BYTES_MAX}: put a "
            "long input as an artifact, and give its id as artifact_id"
        )
        raise InvalidParamsError(ErrorDetail(text, "INVALID_PARAMS", "INVALID_ARGUMENT"))
