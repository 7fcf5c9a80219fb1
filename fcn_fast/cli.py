"""The command ``fcn-fast``."""

import argparse
import sys
from pathlib import Path

import fcn_fast
from fcn_fast.command import InputError
from fcn_fast.experiments import NAMES as EXPERIMENTS
from fcn_fast.train.config import add_arguments as add_train_arguments

__all__ = ["main"]


WEIGHTS = "a .caffemodel, or a .pth or .pt of wkentaro/pytorch-fcn or with a model's state_dict()"
SKIP_BROKEN = {"action": "store_true", "help": "leave out images with missing or broken files"}
OPERATIONS = ["bilinear_upsample", "skip_fuse", "softmax_loss", "upsample_argmax", "upsample_softmax_loss"]
MODEL = "name of the published net, such as voc-fcn16s or siftflow-fcn8s"


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def main(argv=None):
    """Run the command.

    Args:
        argv: arguments after the command's name; those of the process unless given.

    Returns:
        The exit code: 0, 1 where results disagree, 2 where an input cannot be used (one line on stderr says why), 130
        where it was interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files can be no text
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except InputError as error:
        print(f"fcn-fast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fcn-fast: interrupted", file=sys.stderr)
        return 130


# Pillow and matplotlib are imported only where they are used.
def _demo(arguments):
    from fcn_fast import demo

    return demo.run(arguments.image, arguments.out, arguments.size, arguments.device, arguments.rounds)


def _predict(arguments):
    from fcn_fast import predict

    given = (arguments.model, arguments.out, arguments.device, arguments.skip_broken)
    return predict.run(arguments.images, arguments.weights, *given)


def _eval(arguments):
    from fcn_fast import evaluate

    given = (arguments.model, arguments.split, arguments.out, arguments.device, arguments.skip_broken)
    return evaluate.run(arguments.data, arguments.weights, *given)


def _train(arguments):
    from fcn_fast.train import command, config

    return command.run(config.read(arguments))


def _experiment(arguments):
    from fcn_fast import experiments

    return experiments.run(arguments.name, arguments.out, arguments.seed)


def _convert(arguments):
    from fcn_fast import predict

    return predict.convert(arguments.source, arguments.target, arguments.model, arguments.learned_upsampling)


def _bench(arguments):
    from fcn_fast.bench import command

    return command.run(arguments.quick, arguments.device, arguments.json, arguments.plots)


def _compare(arguments):
    from fcn_fast.bench import compare

    return compare.run(arguments.before, arguments.after)


def _profile_stages(arguments):
    from fcn_fast import profile

    words = ("fcn-fast", *sys.argv[1:])
    return profile.run_stages(arguments.device, arguments.out, arguments.rounds, arguments.padding, words)


def _profile_operation(arguments):
    from fcn_fast import profile

    words = ("fcn-fast", *sys.argv[1:])
    return profile.run_operation(
        arguments.name, arguments.size, arguments.replay, arguments.device, arguments.out, arguments.rounds, words
    )


def _env(_arguments):
    from fcn_fast import env

    print(env.report())
    return 0


def _parser():
    parser = _Parser(prog="fcn-fast", description="The pixel end of segmentation networks, made fast.")
    parser.add_argument("--version", action="version", version=f"fcn_fast {fcn_fast.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="run FCN-8s on a photograph, with eager PyTorch and with fcn_fast, and time both",
        description="Run FCN-8s on a photograph, with eager PyTorch and with fcn_fast, check that they agree, print "
        "the time of each stage, and write the labels and a plot of the stages as PNG.",
    )
    demo.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="a JPEG or PNG; a photograph unless given")
    demo.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the PNGs go (default: here)")
    demo.add_argument("--size", type=_whole(1, 4096), default=500, help="side of the image in pixels (default: 500)")
    demo.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    demo.add_argument("--rounds", type=_whole(1, 1000), metavar="N", help="rounds to measure (default: 3, on CUDA 20)")
    demo.set_defaults(command=_demo)

    predict = commands.add_parser(
        "predict",
        help="label images with given weights",
        description="Label images: write each one's label map (PNG with VOC's palette) and the labels blended over the "
        "image, and print each class's share of the pixels.",
    )
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="images, or folders with images")
    predict.add_argument("--weights", type=Path, required=True, metavar="W", help=WEIGHTS + " or .safetensors")
    predict.add_argument("--model", metavar="NAME", help=f"{MODEL} (default: what W says, or voc-fcn8s)")
    predict.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the PNGs go (default: here)")
    predict.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    predict.add_argument("--skip-broken", **SKIP_BROKEN)
    predict.set_defaults(command=_predict)

    evaluate = commands.add_parser(
        "eval",
        help="measure a net on a data set",
        description="Label the images of a data set and compare with its labels: print pixel accuracy, mean accuracy, "
        "mean IU, frequency-weighted IU and each class's, and write them as JSON and the confusion matrix as PNG.",
    )
    kinds = "nyud, pascalcontext, sbd, shapes, siftflow, voc or voc-sbd"
    evaluate.add_argument("--data", required=True, metavar="KIND:PATH", help=f"KIND is {kinds}; shapes needs no PATH")
    evaluate.add_argument("--weights", type=Path, required=True, metavar="W", help=WEIGHTS + " or .safetensors")
    evaluate.add_argument("--model", metavar="NAME", help=f"{MODEL} (default: what W says, or voc-fcn8s)")
    evaluate.add_argument("--split", metavar="NAME", help="list of images (default: val; of nyud and siftflow test)")
    evaluate.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the files go (default: here)")
    evaluate.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    evaluate.add_argument("--skip-broken", **SKIP_BROKEN)
    evaluate.set_defaults(command=_eval)

    train = commands.add_parser(
        "train",
        help="train a net on a data set",
        description="Train a net: write the loss of every step as CSV, checkpoints to go on from, the weights as "
        "safetensors, and curves and samples as PNG. torchrun --nproc-per-node N -m fcn_fast.cli train shares each "
        "step's iter_size micro-batches between processes.",
    )
    add_train_arguments(train)
    train.set_defaults(command=_train)

    experiment = commands.add_parser(
        "experiment",
        help="run a finding of the papers again on generated pictures",
        description="Train narrow nets on Shapes and write a table and a figure. Experiments share the nets that they "
        "have in common, and take up one that is trained already.",
    )
    experiment.add_argument("name", choices=EXPERIMENTS, metavar="NAME", help=", ".join(EXPERIMENTS))
    experiment.add_argument(
        "--out", type=Path, default=Path("experiments"), metavar="DIR", help="where it goes (default: experiments)"
    )
    experiment.add_argument("--seed", type=_whole(0, 1 << 30), default=0, metavar="N", help="default: 0")
    experiment.set_defaults(command=_experiment)

    convert = commands.add_parser(
        "convert",
        help="write published weights as safetensors",
        description="Read the weights of a published net, check every tensor, and write them as safetensors, which "
        "says what net they are for.",
    )
    convert.add_argument("source", type=Path, metavar="SOURCE", help=WEIGHTS)
    convert.add_argument("target", type=Path, metavar="TARGET", help="the .safetensors to write")
    convert.add_argument("--model", metavar="NAME", default="voc-fcn8s", help=f"{MODEL} (default: voc-fcn8s)")
    convert.add_argument("--learned-upsampling", action="store_true", help="keep upsampling filters as they are")
    convert.set_defaults(command=_convert)

    bench = commands.add_parser(
        "bench",
        help="measure this machine: operations, stages, memory; compare two such measurements",
        description="Measure the operations, the stages of FCN-8s and memory, with eager PyTorch, torch.compile and "
        "fcn_fast, and print tables. Takes some minutes; nothing else should be running.",
    )
    bench.add_argument("--quick", action="store_true", help="a minute of it, without torch.compile")
    bench.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
    bench.add_argument("--json", type=Path, metavar="F", help="write the measurements to F")
    bench.add_argument("--plots", type=Path, metavar="DIR", help="write plots as PNG into DIR")
    bench.set_defaults(command=_bench)
    compare = bench.add_subparsers(metavar="[compare A.json B.json]").add_parser(
        "compare",
        help="what moved between two files of --json",
        description="Print the times that moved beyond the noise between two files of --json (or folders of them).",
    )
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    compare.set_defaults(command=_compare)

    profile = commands.add_parser(
        "profile",
        help="a short steady run under a profiler, its parts named",
        description="Run the stages of FCN-8s or an operation for a profiler: on a GPU with NVTX ranges for Nsight, "
        "whose command lines it prints; on a CPU under torch.profiler, as a Chrome trace. See docs/profiling.md.",
    ).add_subparsers(required=True, metavar="{stages,op}")
    stages = profile.add_parser("stages", help="the three stages of FCN-8s at 500x500")
    stages.add_argument("--padding", choices=["caffe", "lean"], default="caffe", help="of the net (default: caffe)")
    stages.set_defaults(command=_profile_stages)
    operation = profile.add_parser("op", help="an operation, or the operators of a captured run")
    operation.add_argument("name", nargs="?", metavar="NAME", choices=OPERATIONS, help=", ".join(OPERATIONS))
    operation.add_argument("--size", choices=["VOC", "Cityscapes", "ADE20K"], default="VOC", help="default: VOC")
    operation.add_argument("--replay", type=Path, metavar="FILE", help="inputs that fcn_fast.profile.capture kept")
    operation.set_defaults(command=_profile_operation)
    for parser_, rounds in ((stages, 5), (operation, 20)):
        parser_.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is a GPU")
        parser_.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="for traces (default: here)")
        parser_.add_argument("--rounds", type=_whole(1, 1000), default=rounds, metavar="N", help=f"default: {rounds}")

    env = commands.add_parser(
        "env",
        help="show versions, devices and which kernels run",
        description="Show the versions of fcn_fast, PyTorch and Python, the devices, and which kernel runs each "
        "operator on them; where that is plain PyTorch, why. A report of a bug is most useful with this.",
    )
    env.set_defaults(command=_env)
    return parser


def _whole(low, high):
    def parse(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text}")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
