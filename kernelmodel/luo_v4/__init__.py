"""LUO as proposed in September 2025 (v4) and never merged; the merged one is `kernelmodel.luo`.

A kernel whose release says `luo_design = "v4"` has one as `kernel.luo_v4` and its merged LUO off.
Where a proposal that stands on it hooks in:

| what | where |
|---|---|
| a part of the kernel with a u64 of its own | `subsystems.Subsystem`, `subsystems.register` |
| a kind of file | `handler.FileHandler`, `core.LuoV4.register_file_handler` |
| the same with a handler of the merged LUO | `merged.MergedHandler`, at PREPARE or PRESERVE_FD |
| state shared by the files of one handler | `global_state.GlobalStateOps`, `FhGlobalStates.get` |
| a subsystem of several handlers, counted | `handler.FileHandler.subsystem` |
| what came over, before LUO is up | `early.subsystem_early`, `early.global_state_early` |
| pages that it preserves, for the checks | `kernelmodel.owners.KeepsPages` |
| an agent | `client.LiveupdateClient` |

In which order all of them are called is told in `core`, what a failure undoes in `subsystems`.
"""
