"""Decoders of whole batches, compiled from the configuration: one generated loop per feed and record format.

The loops read what is usual; a record with anything unusual in it goes, alone, to the general decoder of its feed, which says
what every record means. Both say the same of every record: property tests compare them.
"""
