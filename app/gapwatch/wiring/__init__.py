"""Builds every object from the settings. No logic: the only place that knows connectors, ledger, Kafka and HTTP at once."""

from gapwatch.wiring.examination import examine as examine
from gapwatch.wiring.examination import validate_live as validate_live
from gapwatch.wiring.parts import Parts as Parts
from gapwatch.wiring.replaying import replay_verdicts as replay_verdicts
from gapwatch.wiring.service import local_service as local_service
from gapwatch.wiring.service import serve as serve
from gapwatch.wiring.stores import Stores as Stores
from gapwatch.wiring.upgrade import check_upgrade as check_upgrade
