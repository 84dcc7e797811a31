"""Why a core takes no proposal. Both prove that nothing was appended, so a caller may try elsewhere."""

from kvstore.errors import NoLeader, Overloaded


class NotLeader(NoLeader):
    """This replica does not lead, or is handing its leadership over. Field `leader`: whom to ask, or None."""


class ProposalDropped(Overloaded):
    """The leader takes nothing of this kind now: too much is uncommitted, or a change is in flight."""
