"""Kafka clients, topics and the Faust safety layer."""
