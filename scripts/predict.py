"""Segments images with an exported model.

scripts/predict.py --export=runs/demo/export --out=predictions --images=folder_or_file
"""

from absl import flags

from kmax_tf import predict, runtime

EXPORT = flags.DEFINE_string("export", None, "Folder of the export.", required=True)
IMAGES = flags.DEFINE_multi_string("images", None, "Image file or folder.", required=True)
OUT = flags.DEFINE_string("out", "predictions", "Folder to write into.")


def main():
    done = predict.predict(EXPORT.value, IMAGES.value, OUT.value)
    print(f"{done} images: COCO format and overlays are in {OUT.value}")


if __name__ == "__main__":
    runtime.run(main)
