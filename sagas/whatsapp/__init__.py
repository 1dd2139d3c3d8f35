"""WhatsApp integrations: what is made and removed on Evolution, in Postgres and in Redis."""

from evosaga.events import upcasting
from evosaga.sagas.whatsapp.upcasts import UPCASTS

upcasting.register(UPCASTS)  # whoever knows WhatsApp at all may read histories of its sagas
