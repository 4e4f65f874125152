"""A group id for each port of the Services that already have a Local policy; new ones get theirs when written."""

from django.db import migrations

ADD = """
INSERT INTO services_app_endpointgroup (service_id, port, policy)
SELECT uid, coalesce(port ->> 'protocol', 'TCP') || '/' || (port ->> 'port'), 'Local'
FROM services_app_service, jsonb_path_query(document::jsonb, '$.spec.ports[*]') AS port
WHERE 'Local' IN (document::jsonb -> 'spec' ->> 'internalTrafficPolicy',
                  document::jsonb -> 'spec' ->> 'externalTrafficPolicy')
  AND document::jsonb -> 'spec' ->> 'clusterIP' <> 'None'
ON CONFLICT DO NOTHING
"""
REMOVE = "DELETE FROM services_app_endpointgroup WHERE policy = 'Local'"


class Migration(migrations.Migration):
    dependencies = [("services_app", "0001_first_tables")]
    operations = [migrations.RunSQL(ADD, REMOVE)]
