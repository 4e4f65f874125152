import django.contrib.postgres.indexes
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('services_app', '0001_first_tables'),
    ]

    operations = [
        migrations.AddField(
            model_name='controlplane',
            name='ranges_revision',
            field=models.BigIntegerField(db_default=0, default=0, help_text='The last change of a ServiceCIDR.'),
        ),
        migrations.AlterField(
            model_name='clusteripclaim',
            name='service',
            field=models.ForeignKey(help_text='Empty: an IPAddress made by hand has it.', null=True, on_delete=django.db.models.deletion.CASCADE, related_name='cluster_ip_claims', to='services_app.service'),
        ),
        migrations.CreateModel(
            name='IPAddress',
            fields=[
                ('uid', models.UUIDField(primary_key=True, serialize=False)),
                ('namespace', models.TextField(blank=True, db_collation='C', default='', help_text='Empty for cluster-wide kinds.')),
                ('name', models.TextField(db_collation='C')),
                ('revision', models.BigIntegerField(help_text='metadata.resourceVersion')),
                ('created_at', models.DateTimeField()),
                ('labels', models.JSONField(default=dict)),
                ('document', models.TextField(help_text='The JSON text the API returns.')),
                ('parent', models.TextField(blank=True, default='', help_text='What it belongs to, e.g. services/default/web.')),
            ],
            options={
                'verbose_name': 'IP address',
                'verbose_name_plural': 'IP addresses',
                'ordering': ['namespace', 'name'],
                'abstract': False,
                'constraints': [models.UniqueConstraint(fields=('namespace', 'name'), name='ipaddress_name_is_unique')],
            },
        ),
        migrations.CreateModel(
            name='ServiceCIDR',
            fields=[
                ('uid', models.UUIDField(primary_key=True, serialize=False)),
                ('namespace', models.TextField(blank=True, db_collation='C', default='', help_text='Empty for cluster-wide kinds.')),
                ('name', models.TextField(db_collation='C')),
                ('revision', models.BigIntegerField(help_text='metadata.resourceVersion')),
                ('created_at', models.DateTimeField()),
                ('labels', models.JSONField(default=dict)),
                ('document', models.TextField(help_text='The JSON text the API returns.')),
                ('cidrs', models.JSONField(default=list, help_text='Its ranges.')),
                ('is_ready', models.BooleanField(default=False, help_text='Addresses are given out from it.')),
            ],
            options={
                'verbose_name': 'service CIDR',
                'ordering': ['namespace', 'name'],
                'abstract': False,
                'indexes': [django.contrib.postgres.indexes.GinIndex(fields=['labels'], name='servicecidr_labels')],
                'constraints': [models.UniqueConstraint(fields=('namespace', 'name'), name='servicecidr_name_is_unique')],
            },
        ),
    ]
