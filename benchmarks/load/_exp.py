import asyncio, fcntl, termios, struct, os, array
class DrainLoop(asyncio.SelectorEventLoop):
    def add_reader(self, fd, callback, *args):
        if getattr(callback, "__qualname__", "").endswith("_handle_events") or "PollerCompletionQueue" in repr(callback):
            sock = fd
            recv = sock.recv
            buf = array.array("i", [0])
            fileno = sock.fileno()
            ioctl = fcntl.ioctl
            FION = termios.FIONREAD
            def drained():
                ioctl(fileno, FION, buf)
                n = buf[0]
                if n > 1:
                    recv(n - 1)
                callback()
            return super().add_reader(fd, drained)
        return super().add_reader(fd, callback, *args)
def run(main):
    mode = os.environ.get("EXP", "")
    if mode == "uv":
        import uvloop
        return uvloop.run(main)
    if mode == "uvdrain":
        import uvloop
        class L(uvloop.Loop):
            add_reader = DrainLoop.add_reader
        def add_reader(self, fd, callback, *args):
            if "PollerCompletionQueue" in repr(callback):
                sock=fd; recv=sock.recv; buf=array.array("i",[0]); fileno=sock.fileno()
                def drained():
                    fcntl.ioctl(fileno, termios.FIONREAD, buf)
                    if buf[0] > 1: recv(buf[0]-1)
                    callback()
                return uvloop.Loop.add_reader(self, fd, drained)
            return uvloop.Loop.add_reader(self, fd, callback, *args)
        L.add_reader = add_reader
        with asyncio.Runner(loop_factory=L) as r: return r.run(main)
    if mode == "drain":
        with asyncio.Runner(loop_factory=DrainLoop) as r: return r.run(main)
    return asyncio.run(main)
