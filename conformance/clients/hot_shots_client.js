// Sends a fixed program with `hot-shots` from npm: FOLDER TRANSPORT ADDRESS.
'use strict';

const [folder, transport, address] = process.argv.slice(2);
const { createRequire } = require('node:module');
const StatsD = createRequire(folder + '/')('hot-shots');

// Below every rate: what may be sampled is sent.
Math.random = () => 0.25;

function client(mode, options) {
  const at = address.lastIndexOf(':');
  const place = transport === 'uds'
    ? { protocol: 'uds', path: address }
    : { protocol: transport, host: address.slice(0, at), port: Number(address.slice(at + 1)) };
  return new StatsD({
    ...place,
    ...options,
    prefix: 'hs.',
    globalTags: { via: `${transport}-${mode}` },
    errorHandler: (error) => { throw error; },
  });
}

function program(client) {
  client.increment('jobs', 3, ['env:dev', 'team:core']);
  client.decrement('jobs', 1, ['team:core', 'env:dev']);
  client.increment('several');
  client.increment(['several', 'other']);
  client.gauge('depth', 12.5);
  client.gauge('depth', -4, { 'naïve': 'é' });
  [1, 2, 3, 10].forEach((size) => client.histogram('size', size));
  [1, 2.5, 4].forEach((lag) => client.distribution('lag', lag));
  client.timing('took', 320);
  ['alice', 'bob', 'alice'].forEach((user) => client.set('users', user));
  client.unique('users', 'carol');
  client.increment('sampled', 1, 0.5);
  client.event('Déployé 🚀', 'line one\nline two é', {
    alert_type: 'error',
    aggregation_key: 'key',
    source_type_name: 'source',
    priority: 'low',
    hostname: 'web-9',
  }, ['a:b']);
  client.check('db', client.CHECKS.CRITICAL, { hostname: 'web-9', message: 'down' }, ['a:b']);
}

for (const [mode, options] of [
  ['plain', { maxBufferSize: 0 }],
  ['buffered', { maxBufferSize: 1000, bufferFlushInterval: 50 }],
]) {
  const sender = client(mode, options);
  program(sender);
  sender.close((error) => { if (error) throw error; });
}
