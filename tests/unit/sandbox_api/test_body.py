import json

from hypothesis import given
from hypothesis import strategies as st

from sandbox_api.body import DEPTH_MAX, depth

values = st.recursive(
    st.none() | st.text(alphabet='[]{}"\\a', max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=20,
)


def real_depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(real_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(real_depth, value), default=0)
    return 0


@given(values)
def test_depth_is_counted_outside_strings(value: object) -> None:
    assert depth(json.dumps(value).encode()) == min(real_depth(value), DEPTH_MAX + 1)


@given(st.binary(max_size=300))
def test_any_bytes_have_a_depth(body: bytes) -> None:
    assert 0 <= depth(body) <= DEPTH_MAX + 1
