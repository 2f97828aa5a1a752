"""All mutants."""

from tests.simulation.mutants.mutant import Edit, Mutant

_DECIDE = "leeward_controller.failover.decide"
_LOOP = "leeward_controller.failover.loop"
_EXECUTE = "leeward_controller.failover.execute"
_EVACUATE = "leeward_controller.operations.evacuate"
_CONTEXT = "leeward_controller.operations.context"
_RECORDS = "leeward_controller.records"
_VERBS = "leeward_agent.verbs.base"
_LEASE = "leeward_agent.heartbeat.lease"

MUTANTS = (
    Mutant(
        "no_proof",
        "Evacuates a node as soon as it is FENCING, and does not ask for the proof.",
        (
            Edit(_LOOP, "waiting=self._waiting(node_id) if proof else (),", "waiting=self._waiting(node_id),"),
            Edit(
                _DECIDE,
                "yield from _proof_by_silence(node, missing_s, timing=timing)",
                "yield Evacuate(node.node, node.known_boot_id, node.waiting)",
            ),
            Edit(_EVACUATE, "proof = await _require_proof(context)", "proof = None"),
        ),
    ),
    Mutant(
        "any_epoch_may_run",
        "The agent starts a guest whatever the run epoch beside its disk says.",
        (
            Edit(
                "leeward_agent.domain.right",
                "if record.epoch != spec.run_epoch or record.node != node:",
                "if False:",
            ),
        ),
        story="late_start",
    ),
    Mutant(
        "lease_alone",
        "Fences on the loss of the etcd lease alone, whatever the storage heartbeat says.",
        (
            Edit(_DECIDE, "if silence.seconds < timing.slot_fresh_s:", "if False:"),
            Edit(_DECIDE, "needs_s = slot_needs_s(node, timing)", "needs_s = 0.0"),
        ),
        story="store_lost",
    ),
    Mutant(
        "retry_blindly",
        "Sends a write whose end is not known once more, instead of looking whether it happened.",
        (
            Edit(
                _RECORDS,
                "return await self._resolve(commit.conditions, mutations, write_id)",
                "outcome = await self._commits.transact(commit.conditions, mutations)",
            ),
        ),
        story="lost_answer",
    ),
    Mutant(
        "old_leader_writes",
        "Failover's writes are not bound to the leader's key.",
        (
            Edit(
                _EXECUTE,
                "return await self._records.commit(commit.alive(keys.LEADER, self._leader_epoch))",
                "return await self._records.commit(commit)",
            ),
        ),
        story="late_proof",
    ),
    Mutant(
        "old_owner_owns",
        "Operations are owned by replicas whose registration has ended.",
        (
            Edit(
                "leeward_controller.operations.runner",
                "return commit.alive(keys.controller(self.controller_id), self._registered_revision)",
                "return commit",
            ),
        ),
        seeds=5,
        harmless="an operation owned by a replica that is not registered is an orphan to all others: one of them "
        "claims it, and the compare of the record and the claim at the agent keep the old owner out",
    ),
    Mutant(
        "last_write_wins",
        "A record is replaced even if it has changed since it was read.",
        (
            Edit(
                _RECORDS,
                "self.conditions.append(ModRevisionIs(stored.key, stored.revision))",
                "pass",
                within='def replace(self, stored: "Stored[T]", value: T) -> "Commit":',
            ),
        ),
        story="two_requests",
    ),
    Mutant(
        "no_wait_for_guard",
        "Silence of the slot counts as proof before the guard's deadline.",
        (Edit(_DECIDE, "needs_s = slot_needs_s(node, timing)", "needs_s = timing.slot_fresh_s"),),
        story="slot_lost_later",
    ),
    Mutant(
        "no_margin",
        "The lease needs to be gone for no time at all, and the slot for a second less than the TTL.",
        (
            Edit(_DECIDE, "lease_needs_s = node.guard_delay_s + timing.margin_s", "lease_needs_s = -1.0"),
            Edit(_DECIDE, "needs_s = slot_needs_s(node, timing)", "needs_s = node.lease_ttl_s - 1.0"),
        ),
        story="slot_lost_later",
    ),
    Mutant(
        "guard_sleeps",
        "The guard kills nobody when its deadline passes.",
        (
            Edit(
                "leeward_agent.guard.simulated",
                "self._kill(self._roots())",
                "pass",
                within="if self._state.expired(now_s, delay_s=self._delay_s):",
            ),
        ),
        story="slot_lost_later",
    ),
    Mutant(
        "counts_from_receipt",
        "The agent counts a lease's renewal from when it was answered, not from when it was sent.",
        (
            Edit(
                _LEASE,
                "self._on_renewal(sent_s, min(granted_s, self._ttl_s))",
                "self._on_renewal(self._clock.monotonic_s(), min(granted_s, self._ttl_s))",
            ),
        ),
        story="late_answers",
    ),
    Mutant(
        "forgets_undo",
        "A step that failed is not undone.",
        (Edit("leeward_controller.operations.driver", "if step.undo is not None:", "if False:"),),
    ),
    Mutant(
        "claims_unchecked",
        "The agent works for controllers that have been superseded.",
        (
            Edit("leeward_agent.turns", "if caller.revision < guest.highest:", "if False:"),
            Edit("leeward_agent.turns", "turn.check()", "pass", within="turn.supersede(guest.highest or 0)"),
        ),
        story="late_stop",
    ),
    Mutant(
        "late_calls_obeyed",
        "All calls of an operation bear one revision, so an agent does not tell those that come late.",
        (
            Edit(
                "leeward_controller.operations.driver",
                "caller=Caller(operation.name, step.name, self._written.revision),",
                "caller=Caller(operation.name, step.name, self._written.create_revision),",
            ),
        ),
        story="undone_start",
    ),
    Mutant(
        "hasty_leader",
        "A new leader gives nodes that it finds missing no TTL.",
        (
            Edit(
                _LOOP,
                "grace_s = 0.0 if self._has_looked else stored.value.report.lease_ttl_s",
                "grace_s = 0.0",
            ),
        ),
        seeds=5,
        harmless="the silence of the slot is measured by the observers, for at least a TTL and by their own clocks; "
        "without it nothing is proved; a new leader that is hasty only looks for it sooner",
    ),
    Mutant(
        "no_brake",
        "The brake is never pulled.",
        (Edit(_DECIDE, "of_brake, braked = decide_brake(snapshot, brake)", "of_brake, braked = [], False"),),
        story="brake",
    ),
    Mutant(
        "one_pool_will_do",
        "A node counts as silent when its slot is silent in one of its shared pools.",
        (
            Edit(
                "leeward_controller.failover.observe",
                "least = min(mine, key=lambda one: one.observation.silent_s)",
                "least = max(mine, key=lambda one: one.observation.silent_s)",
            ),
        ),
        story="two_pools",
    ),
    Mutant(
        "pill_unseen",
        "The agent says that a poison pill has been taken before its guard has found no guest left.",
        (
            Edit(
                "leeward_agent.heartbeat.pill",
                "self._is_clear = (await self._guard.status()).clear",
                "self._is_clear = True",
            ),
        ),
        story="moved_by_pill",
    ),
    Mutant(
        "same_epoch",
        "An evacuation does not raise the run epoch.",
        (Edit(_EVACUATE, "epoch = context.instance.run_epoch + 1", "epoch = context.instance.run_epoch"),),
        seeds=5,
        harmless="the agent refuses to claim an epoch that another node has, and the undo of the first attempt lets it "
        "rise, so that the second attempt succeeds",
    ),
    Mutant(
        "epoch_never_rises",
        "Neither an evacuation nor the undo of one raises the run epoch.",
        (
            Edit(_EVACUATE, "epoch = context.instance.run_epoch + 1", "epoch = context.instance.run_epoch"),
            Edit("leeward_controller.operations.running", "epoch = work.run_epoch + 1", "epoch = work.run_epoch"),
        ),
        story="power_cut",
    ),
    Mutant(
        "agent_to_end",
        "An undo takes a fenced target for empty, though guests on its own disks run on.",
        (
            Edit(
                _CONTEXT,
                "if not undoing or not self._may_run_on_own_disks(node_id) or self._is_being_deleted():",
                "if True:",
            ),
        ),
        story="own_disks",
    ),
    Mutant(
        "always_may_start",
        "The agent starts guests on a node that nobody vouches for.",
        (Edit(_VERBS, "if not self._vitals.may_start_guests(pool_id):", "if False:"),),
        story="early_start",
    ),
    Mutant(
        "stale_reservation",
        "Whether there is room is judged by what the replica remembers, not by what was just read.",
        (
            Edit(
                "leeward_controller.operations.holding",
                "here = [] if found is None else [replace(found, allocation=allocation)]",
                "here = [] if found is None else [found]",
            ),
        ),
        story="stale_view",
    ),
)
