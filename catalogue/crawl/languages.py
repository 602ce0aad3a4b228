"""Languages as providers say them (`de`, `de-AT`, `DEU`, the EU's IRI), as tags and as the EU's IRIs. Pure.

Whole codes are compared: `est` is no Spanish. What is not understood has no tag; a wrong one would be believed.
"""

from __future__ import annotations

import re

_IRI = "http://publications.europa.eu/resource/authority/language/"
_TAG = re.compile("([a-z]{2,3})((?:-[a-z0-9]{1,8})*)", re.IGNORECASE)
_NONE = ("mis", "mul", "und", "zxx")  # codes for many, unknown and no languages

# ISO 639-1 = 639-3 (= 639-2/B, where that is another)
_TABLE = """
aa=aar ab=abk ae=ave af=afr ak=aka am=amh an=arg ar=ara as=asm av=ava ay=aym az=aze ba=bak be=bel bg=bul bi=bis
bm=bam bn=ben bo=bod=tib br=bre bs=bos ca=cat ce=che ch=cha co=cos cr=cre cs=ces=cze cu=chu cv=chv cy=cym=wel
da=dan de=deu=ger dv=div dz=dzo ee=ewe el=ell=gre en=eng eo=epo es=spa et=est eu=eus=baq fa=fas=per ff=ful
fi=fin fj=fij fo=fao fr=fra=fre fy=fry ga=gle gd=gla gl=glg gn=grn gu=guj gv=glv ha=hau he=heb hi=hin ho=hmo
hr=hrv ht=hat hu=hun hy=hye=arm hz=her ia=ina id=ind ie=ile ig=ibo ii=iii ik=ipk io=ido is=isl=ice it=ita iu=iku
ja=jpn jv=jav ka=kat=geo kg=kon ki=kik kj=kua kk=kaz kl=kal km=khm kn=kan ko=kor kr=kau ks=kas ku=kur kv=kom
kw=cor ky=kir la=lat lb=ltz lg=lug li=lim ln=lin lo=lao lt=lit lu=lub lv=lav mg=mlg mh=mah mi=mri=mao mk=mkd=mac
ml=mal mn=mon mr=mar ms=msa=may mt=mlt my=mya=bur na=nau nb=nob nd=nde ne=nep ng=ndo nl=nld=dut nn=nno no=nor
nr=nbl nv=nav ny=nya oc=oci oj=oji om=orm or=ori os=oss pa=pan pi=pli pl=pol ps=pus pt=por qu=que rm=roh rn=run
ro=ron=rum ru=rus rw=kin sa=san sc=srd sd=snd se=sme sg=sag sh=hbs si=sin sk=slk=slo sl=slv sm=smo sn=sna so=som
sq=sqi=alb sr=srp ss=ssw st=sot su=sun sv=swe sw=swa ta=tam te=tel tg=tgk th=tha ti=tir tk=tuk tl=tgl tn=tsn
to=ton tr=tur ts=tso tt=tat tw=twi ty=tah ug=uig uk=ukr ur=urd uz=uzb ve=ven vi=vie vo=vol wa=wln wo=wol xh=xho
yi=yid yo=yor za=zha zh=zho=chi zu=zul
"""
_CODES = [line.split("=") for line in _TABLE.split()]
_LONG = {short: long for short, long, *_ in _CODES}
_SHORT = {long: short for short, *others in _CODES for long in others}


def tag_of(text: str) -> str:
    """The tag (BCP 47) of a language: `DEU`, the EU's IRI of it → `de`, `de_AT` → `de-AT`; empty if unknown."""
    found = _TAG.fullmatch(re.split("[/#]", text.strip())[-1].replace("_", "-"))
    if found is None:
        return ""
    code = found[1].lower()
    code = _SHORT.get(code, code)
    known = code in _LONG if len(code) == 2 else code not in _NONE
    return code + found[2] if known else ""


def iri_of(text: str) -> str:
    """The EU's IRI of a language; another IRI unchanged; empty if unknown."""
    code = tag_of(text).partition("-")[0]
    if code:
        return _IRI + _LONG.get(code, code).upper()
    return text if text.startswith(("https://", "http://")) else ""
