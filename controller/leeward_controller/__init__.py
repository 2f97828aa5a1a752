"""Leeward's controller.

It runs fence agents while calls are under way, on uvloop, which forks to start a program. gRPC's handlers of a fork
then abort some of the children before they become what they should be (gRPC's issue 43055), and read only once whether
they are wanted: when gRPC is first imported. So that is settled here, before anything of the controller is.
"""

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
