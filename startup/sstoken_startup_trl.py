"""What the start-up file wraps in TRL: its scripts leave out keys that they do not know, and ours must not be left out.

Imported when TRL's parser is, and not before; nothing of the package is imported. `python -m sstoken_plugin.trl` knows
the block, and so does a script whose SFTConfig is `SSTokenSFTConfig`.
"""

from sstoken_startup import means_ours

HOW_TO = (
    "and every token would be trained on; run `python -m sstoken_plugin.trl` in place of `trl sft`, or remove it to "
    "train without."
)


def refuse_unread_block(parser_class):  # type: ignore[no-untyped-def]
    """Wrap the parser of TRL's scripts, in its place: a block that no argument takes is read by nobody."""
    take_file, take_words = parser_class.set_defaults_with_config, parser_class.parse_args_into_dataclasses

    def refuse(parser, keys):  # type: ignore[no-untyped-def]
        known = {action.dest for action in parser._actions}
        for key in keys:
            if means_ours(key) and key.lstrip("-").split("=")[0] not in known:
                raise ValueError(f"{key.split('=')[0]}: nobody reads it here, {HOW_TO}")

    def set_defaults_with_config(self, **keys):  # type: ignore[no-untyped-def]
        refuse(self, keys)
        return take_file(self, **keys)

    def parse_args_into_dataclasses(self, args=None, *rest, **options):  # type: ignore[no-untyped-def]
        refuse(self, [word for word in args or () if word.startswith("--")])
        return take_words(self, args, *rest, **options)

    parser_class.set_defaults_with_config = set_defaults_with_config
    parser_class.parse_args_into_dataclasses = parse_args_into_dataclasses
    return parser_class


WATCHED = {"trl.scripts.utils": {"TrlParser": refuse_unread_block}}
