"""What an experiment refuses when it builds its model."""

import pytest

from kmax_tf.errors import InputError

ROWS = "training_input.TrainingInput.max_segments = {}"
DROP = "kmax_decoder.ClusterPath.drop_query = True"


@pytest.mark.parametrize(
    "bindings, clusters",
    [((ROWS.format(17),), 16), ((ROWS.format(9), DROP), 8)],  # dropping trains half of 16
)
def test_more_segments_than_clusters(tiny, bindings, clusters):
    with pytest.raises(InputError, match=f"exceeds the {clusters} clusters .*num_clusters 16$"):
        tiny(*bindings).build_model()
    assert tiny(*bindings).build_evaluation_model()  # has no targets


def test_as_many_segments_as_clusters(tiny):
    assert tiny(ROWS.format(8), DROP).build_model()
