"""What raw records say: decoders from Kafka records of each feed kind to canonical events.

Built once per pipeline and side with :func:`decoder_for`; :func:`heartbeat_row` reads heartbeat topics.
"""

from gapwatch.core.envelopes.records import Decoder as Decoder
from gapwatch.core.envelopes.records import Event as Event
from gapwatch.core.envelopes.records import HeartbeatRow as HeartbeatRow
from gapwatch.core.envelopes.records import Marker as Marker
from gapwatch.core.envelopes.records import RawRecord as RawRecord
from gapwatch.core.envelopes.records import Truncate as Truncate
