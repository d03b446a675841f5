class Renderer:
    def __init__(self, core, mode): pass
    def render(self, slot): return ""
