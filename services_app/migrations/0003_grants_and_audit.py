import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

VIEW = """
CREATE VIEW services_app_auditentry AS
    SELECT revision AS id, revision, at, verb, kind, namespace, name, "user", request_id, document, previous,
           '' AS message
      FROM services_app_change
     UNION ALL
    SELECT id, revision, at, verb, kind, namespace, name, "user", request_id, document, previous, message
      FROM services_app_auditrecord
"""
SEQUENCE = "CREATE SEQUENCE services_app_auditrecord_other INCREMENT BY -1 MINVALUE -9223372036854775807 MAXVALUE -1 START WITH -1"


def keep_what_staff_may(apps, schema_editor):
    """Until now being staff was the right to write everything; whoever is staff keeps it, as a grant that is seen."""
    user_model = apps.get_model(settings.AUTH_USER_MODEL)
    grants = [
        apps.get_model("services_app", "Grant")(role="admin", user_id=pk, given_by="timonel:upgrade")
        for pk in user_model.objects.filter(is_staff=True, is_superuser=False).values_list("pk", flat=True)
    ]
    apps.get_model("services_app", "Grant").objects.bulk_create(grants)


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("services_app", "0002_service_ranges_are_objects"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='Grant',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('role', models.TextField(choices=[('view', 'view: read everything but Secrets'), ('edit', 'edit: read Secrets, write what lies in namespaces'), ('admin', 'admin: edit and give grants; everywhere: also Namespaces, Nodes and other cluster-wide kinds')])),
                ('everyone', models.BooleanField(default=False, help_text='All who are known to the API: the group system:authenticated.', verbose_name='everybody')),
                ('namespace', models.TextField(blank=True, db_collation='C', default='', help_text='Empty: everywhere, with the cluster-wide kinds.')),
                ('given_by', models.TextField(blank=True, default='', editable=False)),
                ('given_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('group', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='grants', to='auth.group')),
                ('user', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='grants', to=settings.AUTH_USER_MODEL)),
            ],
            options={
                'ordering': ['namespace', 'role', 'pk'],
                'constraints': [models.CheckConstraint(condition=models.Q(models.Q(('everyone', False), ('group__isnull', True), ('user__isnull', False)), models.Q(('everyone', False), ('group__isnull', False), ('user__isnull', True)), models.Q(('everyone', True), ('group__isnull', True), ('user__isnull', True)), _connector='OR'), name='grant_is_for_one_subject', violation_error_message='Give it to one user, to one group, or to everybody.'), models.UniqueConstraint(fields=('user', 'group', 'everyone', 'namespace', 'role'), name='grant_is_given_once', nulls_distinct=False, violation_error_message='This grant is given already.')],
            },
        ),
        migrations.RunPython(keep_what_staff_may, migrations.RunPython.noop),
        migrations.CreateModel(
            name='AuditRecord',
            fields=[
                ('id', models.BigIntegerField(help_text='The revision of a write; below zero for all else.', primary_key=True, serialize=False)),
                ('revision', models.BigIntegerField(help_text='Of the write, or the newest when it happened: what it is ordered by.')),
                ('at', models.DateTimeField(db_index=True)),
                ('verb', models.TextField(help_text='ADDED, MODIFIED, DELETED or REFUSED.')),
                ('kind', models.TextField(help_text="The kind's plural, e.g. services; also grants, apitokens, users, groups.")),
                ('namespace', models.TextField(blank=True, db_collation='C', default='')),
                ('name', models.TextField(blank=True, db_collation='C', default='')),
                ('user', models.TextField(blank=True, default='')),
                ('request_id', models.TextField(blank=True, default='')),
                ('document', models.TextField(help_text='After the write; before it when deleted; empty when refused.', null=True)),
                ('previous', models.TextField(help_text='Before the write.', null=True)),
                ('message', models.TextField(blank=True, default='', help_text='Why it was refused.')),
            ],
            options={
                'ordering': ['-revision', 'id'],
                'indexes': [models.Index(fields=['-revision', 'id'], name='audit_record_order'), models.Index(fields=['kind', 'namespace', 'name', 'revision'], name='audit_record_of_object'), models.Index(fields=['namespace', '-revision'], name='audit_record_in_namespace'), models.Index(fields=['user', '-revision'], name='audit_record_of_user'), models.Index(fields=['request_id'], name='audit_record_of_request')],
            },
        ),
        migrations.CreateModel(
            name='AuditEntry',
            fields=[
                ('id', models.BigIntegerField(primary_key=True, serialize=False)),
                ('revision', models.BigIntegerField()),
                ('at', models.DateTimeField()),
                ('verb', models.TextField()),
                ('kind', models.TextField()),
                ('namespace', models.TextField()),
                ('name', models.TextField()),
                ('user', models.TextField()),
                ('request_id', models.TextField()),
                ('document', models.TextField(null=True)),
                ('previous', models.TextField(null=True)),
                ('message', models.TextField()),
            ],
            options={
                'verbose_name_plural': 'audit entries',
                'ordering': ['-revision', 'id'],
                'managed': False,
            },
        ),
        migrations.RunSQL(SEQUENCE, "DROP SEQUENCE services_app_auditrecord_other"),
        migrations.RunSQL(VIEW, "DROP VIEW services_app_auditentry"),
    ]
