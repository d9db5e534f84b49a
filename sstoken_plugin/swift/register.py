"""The file for `--external_plugins`, which lets `--callbacks sstoken` be named.

ms-swift takes its path, which `python -m sstoken_plugin.swift` prints.
"""

import sys
from pathlib import Path

from swift.callbacks import callbacks_map

from sstoken_plugin.swift import releases, settings
from sstoken_plugin.swift.callback import SSTokenCallback

# ms-swift puts this folder first, where our modules would hide others of their names.
if sys.path[0] == str(Path(__file__).parent):
    del sys.path[0]
releases.refuse_unsupported()
callbacks_map[settings.CALLBACK] = SSTokenCallback
settings.refuse_idle()
