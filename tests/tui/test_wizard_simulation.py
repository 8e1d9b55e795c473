"""The plan's memory is simulated while the review is read, and nothing waits for it."""

from __future__ import annotations

from tests.tui.conftest import Corner, cpu_machine, gpu_machine, settled, shown
from tests.tui.run_logs import until


async def test_the_review_of_a_gpu_plan_is_confirmed_by_simulation_once(corner: Corner) -> None:
    """One real child process; the second time the figure is known."""
    app = corner.app(step=5, machine=gpu_machine, simulate=True)
    async with app.run_test(size=(110, 36)) as pilot:
        await until(pilot, lambda: "simulation" in app.facts.busy)
        assert "(formula; simulating …)" in shown(app)
        assert app.facts.plan is not None
        formula = app.facts.plan.memory
        await pilot.press("escape")
        await pilot.press("enter")
        await settled(pilot)
        assert app.facts.plan is not None
        memory = app.facts.plan.memory
        assert memory.method == "simulated"
        assert abs(memory.needed / formula.needed - 1) < 0.04
        assert "(simulated" in shown(app)
        app.probe_again()
        await settled(pilot)
        assert app.facts.plan.memory.method == "simulated"


async def test_a_plan_for_the_cpu_stays_with_the_formula(corner: Corner) -> None:
    app = corner.app(step=5, machine=cpu_machine, simulate=True)
    async with app.run_test(size=(110, 36)) as pilot:
        await settled(pilot)
        assert "(formula)" in shown(app)
        assert app._simulator is None


async def test_leaving_ends_the_simulation(corner: Corner) -> None:
    app = corner.app(step=5, machine=gpu_machine, simulate=True)
    async with app.run_test(size=(110, 36)) as pilot:
        await until(pilot, lambda: app._simulator is not None and app._simulator._process is not None)
        assert app._simulator is not None
        process = app._simulator._process
    assert process is not None and process.poll() is not None
