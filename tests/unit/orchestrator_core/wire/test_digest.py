"""The digest of a request: equal for the same body, different for any other. ORCH-3024."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.core.spec import JobSpec
from orchestrator_core.wire.digest import spec_digest
from orchestrator_core.wire.jobs import SpecContext, parse_spec
from tests.unit.orchestrator_core.wire.messages import messages
from tests.unit.orchestrator_core.wire.specs import CONTEXT, NOW_MS, full_spec, small_spec

Change = tuple[str, Callable[[job_pb2.JobSpec], None]]


def changes() -> Iterator[Change]:
    """One change for every field that a full request can have, at any depth."""
    yield from _changes_in(job_pb2.JobSpec.DESCRIPTOR, "", lambda spec: spec)


def _changes_in(descriptor: Descriptor, path: str, reach: Callable[[Any], Any]) -> Iterator[Change]:
    for field in descriptor.fields:
        name = f"{path}{field.name}"
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            yield name, _changed(field, reach)
        elif not field.is_repeated:
            yield from _changes_in(
                field.message_type, f"{name}.", lambda spec, f=field: getattr(reach(spec), f.name)
            )
        else:
            yield f"{name}[]", _changed(field, reach)
            yield from _changes_in(
                field.message_type,
                f"{name}[0].",
                lambda spec, f=field: getattr(reach(spec), f.name)[0],
            )


def _changed(field: FieldDescriptor, reach: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(spec: job_pb2.JobSpec) -> None:
        owner = reach(spec)
        value = getattr(owner, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key = min(value, default="new")
            if isinstance(value[key], Message):
                value[key].string_value = "changed"
            else:
                value[key] += "changed"
        elif field.is_repeated and field.message_type is not None:
            value.add()
        elif field.is_repeated:
            value[0] += "changed"
        elif isinstance(value, str):
            setattr(owner, field.name, value + "changed")
        else:
            setattr(owner, field.name, value + 1)

    return change


@pytest.mark.parametrize(
    "change", [pytest.param(change, id=name) for name, change in changes() if name != "request_id"]
)
def test_every_field_counts(change: Callable[[job_pb2.JobSpec], None]) -> None:
    """A request that differs in one field is another request."""
    changed = full_spec()
    change(changed)

    assert changed != full_spec()
    assert spec_digest(changed) != spec_digest(full_spec())


def test_all_fields_were_tried() -> None:
    """The list of changes covers the message, nested messages included."""
    names = {name for name, _ in changes()}

    assert {field.name for field in job_pb2.JobSpec.DESCRIPTOR.fields} == {
        name.split(".")[0].split("[")[0] for name in names
    }
    assert "sampling.engine_options.fields" in names
    assert "input.chat.messages[0].content" in names


def test_the_request_id_does_not_count() -> None:
    """It is the key under which requests are compared."""
    other = full_spec()
    other.request_id = "other"

    assert spec_digest(other) == spec_digest(full_spec())


@given(st.permutations(["team", "run", "zone"]), st.permutations(["mirostat", "nested"]))
def test_the_order_of_maps_does_not_count(labels: list[str], options: list[str]) -> None:
    """Maps have no order, whichever way a client fills them."""
    spec, reference = full_spec(), full_spec()
    spec.ClearField("labels")
    spec.sampling.engine_options.Clear()

    for key in labels:
        spec.labels[key] = reference.labels[key]
    for key in options:
        spec.sampling.engine_options.fields[key].CopyFrom(
            reference.sampling.engine_options.fields[key]
        )

    assert spec_digest(spec) == spec_digest(reference)


@given(messages(job_pb2.JobSpec))
def test_encoding_and_decoding_does_not_count(spec: job_pb2.JobSpec) -> None:
    """A request that went over the wire has the digest of the one that was built."""
    again = job_pb2.JobSpec.FromString(spec.SerializeToString())

    assert spec_digest(again) == spec_digest(spec)


def test_a_default_that_is_set_differs_from_one_left_out() -> None:
    """Zero and unset are not the same request where 0 means something."""
    spec = small_spec()
    spec.sampling.top_k = 0
    unset = small_spec()
    unset.sampling.SetInParent()

    assert spec_digest(spec) != spec_digest(unset)


def test_ids_and_seeds_that_the_server_chose_do_not_count() -> None:
    """A repeated request is recognised although it got another id and seed the second time."""
    first = parse_spec(small_spec(), CONTEXT)
    second = parse_spec(small_spec(), SpecContext("somebody", "another-job", 99, NOW_MS + 5))

    assert isinstance(first, JobSpec)
    assert isinstance(second, JobSpec)
    assert first.payload != second.payload
    assert first.digest == second.digest


def test_the_digest_is_stable() -> None:
    """Journals keep digests for a day, so a new version must compute the same."""
    canonical = b'{"input":{"text":"Hello"},"model_id":"model"}'

    assert spec_digest(small_spec()) == hashlib.sha256(canonical).hexdigest()
