// Looks at the page as a person does: node page.mjs URL CHROMIUM SCREENSHOT. The packages are found
// through NODE_PATH's folder, given as the fourth argument.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import assert from 'node:assert/strict';

const [url, executablePath, screenshot, packages] = process.argv.slice(2);
const place = createRequire(packages + '/').resolve('puppeteer-core');
const { default: puppeteer } = await import(pathToFileURL(place));
const browser = await puppeteer.launch({
  executablePath, args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
});
try {
  const page = await browser.newPage();
  await page.setViewport({ width: 1200, height: 1600 });
  const problems = [];
  page.on('console', message => message.type() === 'error' && problems.push(message.text()));
  page.on('pageerror', error => problems.push(String(error)));
  page.on('request', request => {
    if (!request.url().startsWith(url) && !request.url().startsWith('data:')) problems.push('outside: ' + request.url());
  });
  const wait = (condition, ...args) => page.waitForFunction(condition, { timeout: 15000, polling: 50 }, ...args);
  const text = id => page.$eval('#' + id, element => element.textContent);
  const names = () => page.$$eval('#series button.series', all => all.map(one => one.textContent));

  await page.goto(url);
  await wait(() => document.querySelectorAll('#series button.series').length > 1);
  assert.match(await text('listeners'), /udp:\/\/127\.0\.0\.1/);
  assert.match(await text('lost'), /refused: no_pipe.*bad line.*via udp/);
  assert.match(await text('senders'), /via udp:.*no_pipe/);
  assert.match(await text('makers'), /via udp:/);
  assert.match(await text('names'), /shop\.requests.*via udp/);
  assert.match(await text('keys'), /user/);
  assert.match(await text('sinks'), /prometheus/);
  assert.match(await text('process'), /% of a core/);

  // It goes on by itself.
  const before = await text('flush');
  await wait(before => document.querySelector('#flush').textContent !== before, before);

  // Search.
  await page.type('#search', 'latency');
  await wait(() => [...document.querySelectorAll('#series button.series')].every(b => b.textContent === 'shop.latency'));
  assert.deepEqual([...new Set(await names())], ['shop.latency']);

  // By a tag, too.
  await page.$eval('#search', field => { field.value = ''; });
  await page.type('#search', 'route:/');
  await wait(() => document.querySelectorAll('#series button.series').length === 1);
  assert.deepEqual(await names(), ['shop.latency']);

  // Plot, by the keyboard: the next stop behind the search field is the first series.
  await page.focus('#search');
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'shop.latency');
  await page.keyboard.press('Enter');
  await wait(() => document.querySelector('#plot svg path')?.getAttribute('d').includes('L'));
  assert.match(await page.$eval('#plot svg', svg => svg.getAttribute('aria-label')), /points, lowest .* highest/);

  // The keyboard's place outlives a flush.
  const flush = await text('flush');
  await wait(flush => document.querySelector('#flush').textContent !== flush, flush);
  await wait(() => document.querySelector('#room').textContent.includes('last hour'));
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'shop.latency');

  // The books: what was read is what became of it.
  const figures = table => page.$$eval(`#${table} tr:nth-child(2) td`, all => all.map(td => td.textContent.replaceAll(',', '')));
  const lines = (await figures('listeners')).slice(4).map(Number);
  assert.equal(lines[0], lines[1] + lines[2] + lines[3] + lines[4]);
  const points = (await figures('sinks')).slice(1).map(Number);
  assert.equal(points[0] + points[1], points[2] + points[3] + points[4] + points[5]);

  // The flame graph of a minute, and the same in words.
  await wait(() => document.querySelector('#flame object')?.contentDocument?.querySelectorAll('rect').length > 3);

  await wait(() => document.querySelectorAll('#functions tr').length > 2 && document.querySelectorAll('#stages tr').length > 1);

  // Every table has heads and a name, every field a name, in the dark as well.
  assert.equal(await page.$$eval('table', all => all.filter(t => t.rows.length > 1 && !t.querySelector('th[scope=col]')).length), 0);
  assert.equal(await page.$$eval('table', all => all.filter(t => t.rows.length && !document.getElementById(t.getAttribute('aria-labelledby'))).length), 0);
  assert.equal(await page.$$eval('input, select', all => all.filter(one => !one.labels.length).length), 0);
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground();
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'dark' }]);
  assert.notEqual(await ground(), light);
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: 'light' }]);
  await page.screenshot({ path: screenshot, fullPage: true });

  // A name that is markup is shown as text.
  await page.$eval('#search', field => { field.value = ''; });
  await page.type('#search', '<img');
  await wait(() => document.querySelector('#series button.series')?.textContent.startsWith('<img'));
  assert.equal(await page.$$eval('#series img', all => all.length), 0);
  assert.deepEqual(problems, []);
} catch (error) {
  // The last line is what the test shows.
  console.log(String(error.stack).replaceAll('\n', ' | '));
  process.exitCode = 1;
} finally {
  await browser.close();
}
