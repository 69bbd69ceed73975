"A server on this machine that speaks the endpoints of the Hugging Face Hub, and spoils requests on demand: for the tests of 51_hub and the_hub_has_it"
import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Repo:
    "A repository: its visibility and its commits, each a title and all files by path"
    def __init__(self, private):
        self.private, self.commits = private, [('0'*40, 'initial commit', {'.gitattributes': b''})]
    files = property(lambda self: self.commits[-1][2])
    titles = property(lambda self: [title for _, title, _ in self.commits[1:]])
    def at(self, revision): return next((c for c in reversed(self.commits) if revision in ('main', c[0])), None)
    def commit(self, title, files):
        sha = os.urandom(20).hex()          # never twice: the client remembers for ever what a commit holds
        self.commits.append((sha, title, files))
        return sha

def is_lfs(path, size): return path.endswith('.safetensors') or size > 50_000
def oid_of(path, data):
    "SHA-256 of a large file, git's SHA-1 of a small one"
    if is_lfs(path, len(data)): return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()

class LoopbackHub(ThreadingHTTPServer):
    "Repositories in memory behind those of the Hub's endpoints that the client uses; `fault` may spoil any request"
    daemon_threads, request_queue_size = True, 64
    def __init__(self, tokens=('hf_writer',), readers=('hf_reader',)):
        super().__init__(('127.0.0.1', 0), Endpoints)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.tokens, self.readers, self.lock = tokens, readers, threading.RLock()
        self.clear()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def clear(self):
        "Nothing stored, nothing seen, nothing spoilt"
        self.repos, self.blobs, self.log, self.fault = {}, {}, [], lambda method, path: None

    def handle_error(self, request, client_address):
        if isinstance(sys.exc_info()[1], OSError): return          # a client that went away
        super().handle_error(request, client_address)

    def asked(self, part):
        "Requests seen whose path holds `part`: (method, path, headers, body, fault)"
        return [r for r in self.log if part in r[1]]

def in_turn(part, *faults):
    "Spoil the first requests to `part`: a status, (429, seconds), 'cut', 'half', 'lose', seconds or an Event"
    faults = list(faults)
    return lambda method, path: faults.pop(0) if part in path and faults else None

class Endpoints(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = 'HTTP/1.1', True
    def log_message(self, *args): pass

    def answer(self):
        "Note the request, spoil it or do what it asks"
        path, length = unquote(urlsplit(self.path).path), int(self.headers.get('Content-Length') or 0)
        if path == '/api/agent-harnesses': return self.reply(404)       # the client's own curiosity
        fault = self.server.fault(self.command, path)
        body = self.rfile.read(length//2 if fault == 'cut' else length)
        seen = self.command, path, {k.lower(): v for k, v in self.headers.items()}, body, fault
        with self.server.lock: self.server.log.append(seen)
        if fault == 'cut': return self.hang_up()
        if isinstance(fault, threading.Event): fault.wait()
        elif isinstance(fault, float): time.sleep(fault)
        elif isinstance(fault, tuple): return self.reply(fault[0], {'error': 'spoilt'}, {'Retry-After': str(fault[1])})
        elif isinstance(fault, int): return self.reply(fault, {'error': 'spoilt'})
        with self.server.lock: status, data, headers = self.route(path, body)
        if fault == 'lose': return self.hang_up()          # done, but nobody is told
        self.reply(status, data, headers, half=fault == 'half')
    do_GET = do_HEAD = do_POST = do_PUT = answer

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, status, data=b'', headers=None, half=False):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for k, v in {'Content-Length': str(len(data)), **(headers or {})}.items(): self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(data[:len(data)//2] if half else data)
        if half: self.hang_up()

def route(self, path, body):
    "Status, content and headers for a request, after a look at who asks"
    name = r'([\w.-]+/[\w.-]+)'
    token = self.headers.get('Authorization', '').removeprefix('Bearer ')
    known, writes = token in (*self.server.tokens, *self.server.readers), self.command in ('POST', 'PUT')
    if path == '/api/validate-yaml': return 200, {'errors': [], 'warnings': []}, {}
    if m := re.fullmatch(rf'/lfs/{name}/(\w+)', path): return self.store(m[2], body)      # a signed address: no token
    if writes and not known: return 401, {'error': 'Invalid username or password.'}, {}
    if writes and token in self.server.readers: return 403, {'error': 'a write token is needed'}, {}
    if path == '/api/repos/create': return self.create(json.loads(body))
    if path == '/lfs/verify': return 200, {}, {}
    models = rf'/api/models/{name}'
    for pattern, act in ((rf'{models}(?:/revision/(.+))?', self.info), (rf'{models}/tree/([^/]+)(/.*)?', self.tree),
                         (rf'{models}/preupload/main', self.preupload), (rf'{models}/commit/main', self.commit),
                         (rf'/{name}\.git/info/lfs/objects/batch', self.batch),
                         (rf'/{name}/resolve/([^/]+)/(.+)', self.resolve)):
        if not (m := re.fullmatch(pattern, path)): continue
        repo = self.server.repos.get(m[1])
        if not known and (repo is None or repo.private): return 401, {'error': 'Invalid username or password.'}, {}
        if repo is None: return 404, {'error': 'Repository not found'}, {'X-Error-Code': 'RepoNotFound'}
        return act(repo, m, body)
    return 404, {'error': f'no endpoint {self.command} {path}'}, {}
Endpoints.route = route

def create(self, asked):
    name = f'{asked["organization"]}/{asked["name"]}'
    url = {'url': f'{self.server.url}/{name}'}
    if name in self.server.repos: return 409, {'error': 'You already created this model repo', **url}, {}
    self.server.repos[name] = Repo(asked['visibility'] == 'private' if 'visibility' in asked else asked['private'])
    return 200, url, {}
Endpoints.create = create

missing_revision = 404, {'error': 'Invalid rev id'}, {'X-Error-Code': 'RevisionNotFound'}

def info(self, repo, m, body):
    at = repo.at(m[2] or 'main')
    if at is None: return missing_revision
    return 200, {'id': m[1], 'sha': at[0], 'private': repo.private, 'siblings': [{'rfilename': f} for f in at[2]]}, {}

def tree(self, repo, m, body):
    at, below = repo.at(m[2]), (m[3] or '').strip('/')
    if at is None: return missing_revision
    deep, found = 'recursive=true' in self.path.lower(), {}
    for path, data in at[2].items():
        if below and not path.startswith(below+'/'): continue
        rest = path[len(below):].strip('/').split('/')
        large = {'lfs': {'oid': oid_of(path, data), 'size': len(data), 'pointerSize': 130}}
        large = large if is_lfs(path, len(data)) else {}
        folder = f'{below}/{rest[0]}'.strip('/')
        if len(rest) > 1: found[folder] = {'type': 'directory', 'path': folder, 'oid': '1'*40, 'size': 0}
        file = {'type': 'file', 'path': path, 'oid': oid_of(path, data)[:40], 'size': len(data), **large}
        if deep or len(rest) == 1: found[path] = file
    return 200, list(found.values()), {}

def resolve(self, repo, m, body):
    at = repo.at(m[2])
    if at is None: return missing_revision
    if m[3] not in at[2]: return 404, {'error': 'Entry not found'}, {'X-Error-Code': 'EntryNotFound'}
    data = at[2][m[3]]
    headers = {'X-Repo-Commit': at[0], 'ETag': f'"{oid_of(m[3], data)}"'}
    begin = re.match(r'bytes=(\d+)-', self.headers.get('Range', ''))
    return (206, data[int(begin[1]):], headers) if begin else (200, data, headers)
Endpoints.info, Endpoints.tree, Endpoints.resolve = info, tree, resolve

def preupload(self, repo, m, body):
    def known(path): return oid_of(path, repo.files[path]) if path in repo.files else None
    files = [{'path': f['path'], 'uploadMode': 'lfs' if is_lfs(f['path'], f['size']) else 'regular',
              'shouldIgnore': False, 'oid': known(f['path'])} for f in json.loads(body)['files']]
    return 200, {'files': files}, {}

def batch(self, repo, m, body):
    def actions(oid):
        if oid in self.server.blobs: return {}
        to = f'{self.server.url}/lfs/'
        return {'actions': {'upload': {'href': f'{to}{m[1]}/{oid}'}, 'verify': {'href': f'{to}verify'}}}
    return 200, {'transfer': 'basic', 'objects': [o | actions(o['oid']) for o in json.loads(body)['objects']]}, {}

def store(self, oid, body):
    if hashlib.sha256(body).hexdigest() != oid: return 400, {'error': 'not what its hash says'}, {}
    self.server.blobs[oid] = body
    return 200, b'', {}

def commit(self, repo, m, body):
    (header, *lines), files = [json.loads(line) for line in body.splitlines()], dict(repo.files)
    head = header['value']
    if head.get('parentCommit', repo.commits[-1][0]) != repo.commits[-1][0]:
        return 412, {'error': 'A commit has happened since. Please refresh and try again.'}, {}
    for key, v in ((line['key'], line['value']) for line in lines):
        if key == 'file': files[v['path']] = base64.b64decode(v['content'])
        elif key == 'lfsFile': files[v['path']] = self.server.blobs[v['oid']]
        else:
            gone = [f for f in files if f == v['path'] or f.startswith(v['path'].rstrip('/')+'/')]
            if not gone: return 404, {'error': f'no {v["path"]} to delete'}, {'X-Error-Code': 'EntryNotFound'}
            for f in gone: del files[f]
    sha = repo.commit(head['summary'], files)
    return 200, {'commitUrl': f'{self.server.url}/{m[1]}/commit/{sha}', 'commitOid': sha}, {}
Endpoints.preupload, Endpoints.batch, Endpoints.store, Endpoints.commit = preupload, batch, store, commit
