"""The images of a dataset of one's own, read by worker processes."""

from data_prep import raw_dataset


def test_labels_are_in_memory_once(tmp_path, draw_image):
    """Workers would send copies of them back."""
    count = raw_dataset.JOB + 1  # for two workers
    for k in range(count):
        draw_image(tmp_path / f"{k}.png", 4, 5 + k, k)
    sources = [raw_dataset.Source(str(k), f"{k}.png", [[0, 0]]) for k in range(count)]
    listing = raw_dataset.Listing(str(tmp_path), sources)
    pictures = raw_dataset.look_at_all(listing, workers=2)
    assert [picture.facts.size for picture in pictures] == [(5 + k, 4) for k in range(count)]
    assert all(p.source is source for p, source in zip(pictures, sources, strict=True))
