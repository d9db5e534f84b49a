"""What the start-up file wraps in ms-swift: a run with settings in SSTOKEN that does not name the callback must stop.

Imported when ms-swift's trainers are, and not before; nothing of the package is imported.
"""

import os
import sys

HOW_TO = (
    "name both `--external_plugins $(python -m sstoken_plugin.swift)` and `--callbacks sstoken`, or unset SSTOKEN to "
    "train without."
)


def refuse_idle_settings(mixin):  # type: ignore[no-untyped-def]
    """Wrap where ms-swift's trainers make their callbacks."""
    make = mixin._get_callbacks
    if make.__module__ == __name__:
        return mixin

    def make_with_ours(self, args):  # type: ignore[no-untyped-def]
        # Told to ignore arguments that it does not know, ms-swift would do so.
        given = next((word for word in sys.argv[1:] if word.lower().startswith("--sstoken")), None)
        if given is not None:
            raise ValueError(
                f"{given}: ms-swift has no such argument; settings are read from the environment: {HOW_TO}"
            )
        named = "sstoken" in (getattr(args, "callbacks", None) or ())
        if "SSTOKEN" in os.environ and not named:
            raise ValueError(f"SSTOKEN: nobody reads it, and every token would be trained on; {HOW_TO}")
        if named and "sstoken" not in sys.modules["swift.callbacks"].callbacks_map:
            raise ValueError(f"callbacks: sstoken is not there without its file; {HOW_TO}")
        return make(self, args)

    mixin._get_callbacks = make_with_ours
    return mixin


def refuse_settings(trainer):  # type: ignore[no-untyped-def]
    """Wrap the trainer of `megatron sft`, which takes no callback of transformers."""
    make = trainer.__init__

    def make_without_ours(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if "SSTOKEN" in os.environ:
            raise ValueError(
                "SSTOKEN: Megatron has a trainer of its own, which selection cannot take over; train with `swift sft`, "
                "or unset SSTOKEN to train without."
            )
        make(self, *args, **kwargs)

    trainer.__init__ = make_without_ours
    return trainer


WATCHED = {
    "swift.trainers.mixin": {"SwiftMixin": refuse_idle_settings},
    "swift.megatron.trainers.base": {"BaseMegatronTrainer": refuse_settings},
}
