"""Kernels whose heavy libraries are imported already.

Each is a fork, a process of its own, of one that imported them once.
"""

import multiprocessing
import os
import signal

from jupyter_client.manager import AsyncKernelManager

HEAVY = [
    "ipykernel.kernelapp",
    "matplotlib.pyplot",
    "pandas",
    "scipy.stats",
    "seaborn",
    "torch",
    "transformers.modeling_utils",
    "transformers.models.auto",
    "transformers.trainer",
]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(HEAVY)


def serve(arguments, folder, environment):
    "Runs a kernel until it is told to end."
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where it says how to connect
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import matplotlib
    from ipykernel.kernelapp import IPKernelApp

    matplotlib.use("module://matplotlib_inline.backend_inline")  # a kernel tells matplotlib so when that is imported
    IPKernelApp.launch_instance(argv=arguments)


class Forked:
    "A process, with what a kernel's provisioner asks of one."

    stdin = stdout = stderr = None

    def __init__(self, *given):
        self.process = FORKS.Process(target=serve, args=given)
        self.process.start()
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def wait(self):
        self.process.join()
        return self.process.exitcode


class WarmKernels(AsyncKernelManager):
    "Starts kernels as forks."

    async def _async_launch_kernel(self, kernel_cmd, **more):
        arguments = kernel_cmd[kernel_cmd.index("ipykernel_launcher") + 1 :]
        self.provisioner.process = Forked(
            arguments, more.get("cwd") or os.getcwd(), more.get("env") or dict(os.environ)
        )
        self.provisioner.pid = self.provisioner.pgid = self.provisioner.process.pid
        self._reconcile_connection_info(self.provisioner.connection_info)
