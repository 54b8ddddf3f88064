"""Serves a local web page that shows what an exported model sees in an image.

scripts/serve.py runs/demo/export
"""

import argparse

from kmax_tf import predict, runtime
from kmax_tf.predict import web_demo


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("export", metavar="EXPORT", help="folder of the export")
    parser.add_argument("--host", default="127.0.0.1", help="this machine alone: %(default)s")
    parser.add_argument("--port", type=int, default=7860, help="%(default)s; 0 for a free one")
    return parser.parse_args()


def main(options):
    web_demo.serve(predict.load(options.export), options.export, options.host, options.port)


if __name__ == "__main__":
    runtime.run(main, parse())
