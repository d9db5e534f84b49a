"""What the start-up file wraps in LLaMA-Factory, which has no plugins and no way to add a key to its YAML.

Imported when LLaMA-Factory reads arguments, and not before. A run without an `sstoken` key is read as ever, and nothing
of the package is imported for it.
"""

from sstoken_startup import means_ours


def ours(args):  # type: ignore[no-untyped-def]
    """Return the keys of a YAML, or the options of a command line, that mean the selection, misspelt or not."""
    # Of a command line the other words are values.
    keys = args if isinstance(args, dict) else [word for word in args or () if "=" in word or word.startswith("-")]
    return list(filter(means_ours, keys))


def hand_block_over(parse_args):  # type: ignore[no-untyped-def]
    """Wrap LLaMA-Factory's `_parse_args`: what is ours goes to the package, and the rest to LLaMA-Factory."""

    def parse_without_block(parser, args=None, *rest, **options):  # type: ignore[no-untyped-def]
        read_args = parse_args.__globals__.get("read_args")
        args = args if read_args is None else read_args(args)
        if not ours(args):
            return parse_args(parser, args, *rest, **options)
        from sstoken_plugin.llamafactory.arguments import parse

        return parse(parse_args, parser, args, *rest, **options)

    return parse_without_block


def refuse_unread_block(parser_class):  # type: ignore[no-untyped-def]
    """Wrap the parser that all arguments come to: a block that is still there is read by nobody.

    LLaMA-Factory itself refuses a key that it does not know, unless it is told in the environment to ignore those.
    """

    def refuse(args):  # type: ignore[no-untyped-def]
        if unread := ours(args):
            raise ValueError(
                f"{unread[0]}: nobody reads it here, and every token would be trained on; sstoken-plugin reads a block "
                "`sstoken:` in the YAML of `llamafactory-cli train` of LLaMA-Factory 0.9.5, with USE_V1 unset; remove "
                "it to train without."
            )

    class Parser(parser_class):  # type: ignore[misc, valid-type]
        def parse_dict(self, args, *rest, **options):  # type: ignore[no-untyped-def]
            refuse(args)
            return super().parse_dict(args, *rest, **options)

        def parse_args_into_dataclasses(self, args=None, *rest, **options):  # type: ignore[no-untyped-def]
            refuse(args)
            return super().parse_args_into_dataclasses(args, *rest, **options)

    return Parser


WATCHED = {
    "llamafactory.hparams.parser": {"_parse_args": hand_block_over, "HfArgumentParser": refuse_unread_block},
    "llamafactory.v1.config.arg_parser": {"HfArgumentParser": refuse_unread_block},
}
