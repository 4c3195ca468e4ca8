"""All checks, in the order in which a person wants to read them."""

from r1mac.doctor import computer, conformance, history, memory, storage
from r1mac.doctor.examination import Check

CHECKS = (
    Check("computer", computer.check_computer),
    Check("macOS", computer.check_macos),
    Check("Python", computer.check_python),
    Check("MLX", computer.check_mlx),
    Check("wired limit", memory.check_wired_limit),
    Check("limit at start", memory.check_startup),
    Check("tuning record", memory.check_tuning_record),
    Check("memory pressure", memory.check_pressure),
    Check("swap", memory.check_swap),
    Check("wired memory", memory.check_wired_memory),
    Check("power", computer.check_power),
    Check("heat", computer.check_heat),
    Check("disk", storage.check_disk),
    Check("Thunderbolt", computer.check_thunderbolt),
    Check("crashes", history.check_panics),
    Check("last run", history.check_last_run),
    Check("settings", storage.check_settings),
    Check("models", storage.check_store),
    Check("models", storage.check_models),
    Check("tokenizers", conformance.check_tokenizers),
)
