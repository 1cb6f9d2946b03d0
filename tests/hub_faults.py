"""What goes wrong on a Hub, and where."""


def rule(method, path, action, times=1, skip=0):
    return {"match": {"method": method, "path": path}, "times": times, "skip": skip, "action": action}


PASSING = {
    "429, then success": rule("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "0"}}),
    "503 for a while at the commit": rule("POST", "/commit/", {"status": 503}, times=3),
    "503 at preupload": rule("POST", "/preupload/", {"status": 503}),
    "500 at the tag": rule("POST", "/tag/", {"status": 500}),
    "502 at refs": rule("GET", "/refs", {"status": 502}),
    "503 when the repository is made": rule("POST", "/repos/create", {"status": 503}),
    "409 at the commit": rule("POST", "/commit/", {"status": 409}),
    "412 at the commit, by chance": rule("POST", "/commit/", {"status": 412}),
    "cut in an upload": rule("PUT", "/lfs-upload/", {"cut_request_after": 5000}),
    "cut in the commit's request": rule("POST", "/commit/", {"cut_request_after": 300}),
    "cut in the answer to the commit": rule("POST", "/commit/", {"cut_response_after": 10}),
    "no answer to the commit": rule("POST", "/commit/", {"drop_response": True}, times=3),
    "no answer to the tag": rule("POST", "/tag/", {"drop_response": True}, times=3),
    "no answer when the repository is made": rule("POST", "/repos/create", {"drop_response": True}),
    "cut in the answer to refs": rule("GET", "/refs", {"cut_response_after": 5}),
}


LASTING = {
    "503 that lasts, at the commit": (rule("POST", "/commit/", {"status": 503}, times=99, skip=1), "answered 503"),
    "no answer that lasts, at the tag": (rule("POST", "/tag/", {"status": 504}, times=99, skip=1), "answered 504"),
    "401": (rule("POST", "/commit/", {"status": 401}, times=99, skip=1), "hf auth login"),
    "403": (rule("POST", "/commit/", {"status": 403}, times=99, skip=1), "may not write"),
    "404": (rule("GET", "/refs", {"status": 404}, times=99, skip=1), "has no"),
    "412 that lasts": (rule("POST", "/commit/", {"status": 412}, times=99, skip=1), "keeps changing"),
}


KILLED = {
    "before the first commit": rule("POST", "/commit/", {"status": 503, "delay": 20}),
    "after a commit, before its answer": rule("POST", "/commit/", {"drop_response": True, "delay": 20}, skip=1),
    "between commit and tag": rule("POST", "/tag/", {"status": 503, "delay": 20}, skip=1),
    "between two tasks": rule("GET", "/refs", {"status": 503, "delay": 20}, skip=1),
}
