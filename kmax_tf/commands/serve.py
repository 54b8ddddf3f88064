"""Serves a local web page that segments images with an exported model.

kmax serve runs/demo/export
"""

from kmax_tf import command_line


def parse():
    parser = command_line.Parser(__doc__)
    parser.add_argument("export", help="folder of the export")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="0: any free port")
    return parser.parse_args()


def main(options):
    from kmax_tf import predict
    from kmax_tf.predict import web_demo

    web_demo.serve(predict.load(options.export), options.export, options.host, options.port)
